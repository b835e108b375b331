//! `duogpt demo`
use super::CliError;
use clap::Args;
use std::process::ExitCode;
#[derive(Args)]
pub struct DemoArgs {}
pub fn run(_args: &DemoArgs) -> Result<ExitCode, CliError> {
    Ok(ExitCode::SUCCESS)
}
