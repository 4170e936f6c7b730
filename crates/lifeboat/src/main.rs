//! The `lifeboat` program.

mod capture_state;
mod cli;
mod commands;
mod daemon;
mod demo;
mod exit;
mod exports;
#[cfg(test)]
mod named_commands;
mod new_file;
mod output;
mod progress;
mod size;
mod tls;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::Cli;
use crate::exit::{Exit, Failure};
use crate::output::OutputFormat;

fn main() -> ExitCode {
    lifeboat_sys::host::raise_open_file_limit();
    let exit = match Cli::try_parse() {
        Ok(cli) => {
            let output = cli.output();
            match cli.command.run(output, cli.host) {
                Ok(()) => Exit::Done,
                Err(failure) => {
                    report(&failure, output);
                    failure.exit()
                }
            }
        }
        Err(error) => usage(&error),
    };
    ExitCode::from(exit.code())
}

/// Tells on the error output why a command was not done.
fn report(failure: &Failure, output: OutputFormat) {
    if failure.is_broken_pipe() {
        return;
    }
    let text = match output {
        OutputFormat::Table => failure.to_text(),
        OutputFormat::Json => failure.to_json(),
    };
    // If the error output is closed, the exit code is all that is left.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Answers arguments that are no command, and the requests for help and version.
fn usage(error: &clap::Error) -> Exit {
    if error.use_stderr() {
        if asks_for_json(std::env::args_os().skip(1)) {
            let what = error.to_string();
            let what = what.trim().trim_start_matches("error: ").to_owned();
            report(&Failure::Usage { what }, OutputFormat::Json);
        } else {
            // As above.
            let _ = error.print();
        }
        return Exit::Usage;
    }
    match error.print() {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

/// Whether arguments that could not be parsed ask for JSON.
fn asks_for_json(arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let mut follows_output = false;
    for argument in arguments {
        if argument == "--output=json" || (follows_output && argument == "json") {
            return true;
        }
        follows_output = argument == "--output";
    }
    false
}
