//! `probe502`: parse, run, exit code.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use probe502::{
    app::{self, AppError},
    cli::{
        args::{Arguments, Command},
        plan,
    },
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(AppError { failure, error }) => {
            // Nothing is left to do when stderr is closed too.
            let _ = writeln!(io::stderr(), "probe502: {error:#}");
            failure.into()
        }
    }
}

fn run(command: Command) -> Result<(), AppError> {
    match command {
        Command::Watch(typed) => {
            let plan = plan::Watch::try_from(typed).map_err(AppError::usage)?;
            app::watch::run(&plan)
        }
        Command::Report(typed) => {
            let plan = plan::Report::try_from(typed).map_err(AppError::usage)?;
            app::report::run(&plan)
        }
        Command::Doctor(typed) => app::doctor::run(typed.hide_btf, plan::Output::from(&typed.output)),
        Command::Explain(typed) => app::explain::run(typed.cause.as_deref(), plan::Output::from(&typed.output)),
    }
}
