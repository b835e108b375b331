//! The `duogpt` command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A reader that leaves early (`duogpt verify | head`) ends the program quietly, as it does other programs.
    // SAFETY: the default action of a signal, set before any thread starts.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    duogpt::cli::Cli::parse().run()
}
