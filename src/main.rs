//! The `duogpt` command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    duogpt::cli::Cli::parse().run()
}
