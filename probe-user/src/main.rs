//! `probe502`: parse, run, exit code.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
#[cfg(feature = "live")]
use probe502::cli::{check::Check, record::Record};
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
        Ok(code) => code,
        Err(AppError { failure, error }) => {
            // Nothing is left to do when stderr is closed too.
            let _ = writeln!(io::stderr(), "probe502: {error:#}");
            failure.into()
        }
    }
}

fn run(command: Command) -> Result<ExitCode, AppError> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        #[cfg(feature = "live")]
        Command::Watch(typed) => {
            let plan = plan::Watch::try_from(typed).map_err(AppError::usage)?;
            app::watch::run(&plan, None).map(done)
        }
        #[cfg(feature = "live")]
        Command::Record(typed) => {
            let plan = Record::try_from(typed).map_err(AppError::usage)?;
            app::watch::run(&plan.watch, Some(&plan)).map(done)
        }
        Command::Analyze(typed) => {
            let plan = plan::Analyze::try_from(typed).map_err(AppError::usage)?;
            app::analyze::run(&plan)
        }
        #[cfg(feature = "live")]
        Command::Check(typed) => {
            let plan = Check::try_from(typed).map_err(AppError::usage)?;
            app::check::run(&plan)
        }
        #[cfg(feature = "live")]
        Command::Doctor(typed) => app::doctor::run(typed.hide_btf, plan::Output::from(&typed.output)).map(done),
        Command::Explain(typed) => {
            app::explain::run(typed.cause.as_deref(), plan::Output::from(&typed.output)).map(done)
        }
        Command::Report(typed) => {
            let plan = plan::Report::try_from(typed).map_err(AppError::usage)?;
            app::report::run(&plan).map(done)
        }
    }
}
