//! The project's own commands. `cargo xtask --help` lists them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line program for the people who build this")]

mod bench;
mod command;
mod cross;
mod deny;
mod fuzz;
mod lint;
mod program;
mod reproduce;
mod setup;
mod test;
mod tidy;
mod version;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{setup::Refusal, workspace::Workspace};

/// Builds, tests and checks probe502.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need, and check that the versions fit each other
    Setup {
        /// And what `cargo xtask bench` compares with: tcptrace, strace, bpftrace, and a Suricata in a folder of its own
        #[arg(long)]
        bench: bool,
    },
    /// Build target/release/probe502
    Build,
    /// Break an nginx in several ways and let probe502 explain each
    Demo,
    /// Run every fault of the lab in every view and write the README's table (root)
    LabTable {
        /// Only the faults whose name contains this (`a,b`: one of these), and those that share their nginx
        filter: Option<String>,
    },
    /// Run every check and every test, the live ones too (root)
    Test {
        /// Run only the tests whose name contains this, and no lint
        filter: Option<String>,
        /// And what takes long: the other architecture, the object built twice, the other kernels
        #[arg(long, conflicts_with = "filter")]
        all: bool,
    },
    /// Check format, clippy (host and kernel side), the rules of the design, dependencies
    Lint,
    /// Check the rules of the design that no compiler checks
    Tidy,
    /// Search for inputs that break what reads the bytes of others
    Fuzz {
        /// Only this target (default: one after another)
        target: Option<String>,
        /// For so long each
        #[arg(long, default_value_t = 10)]
        minutes: u32,
    },
    /// Measure what it costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Check that everything compiles for aarch64
    Cross,
    /// Build the kernel object in two folders and compare the bytes
    Reproduce,
    /// Try the program on other kernels, in virtual machines
    VmTest(vm::Plan),
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    let done = Workspace::find().and_then(|workspace| match task {
        Task::Setup { bench } => {
            let done = if bench { setup::for_benches(&workspace) } else { setup::run(&workspace) };
            done.map(|()| true)
        }
        Task::Build => program::build(&workspace).map(|_| true),
        Task::Demo => program::demo(&workspace),
        Task::LabTable { filter } => program::lab_table(&workspace, filter.as_deref()),
        Task::Test { filter, all } => test::run(&workspace, filter.as_deref(), all),
        Task::Lint => lint::run(&workspace),
        Task::Tidy => tidy::run(&workspace),
        Task::Fuzz { target, minutes } => fuzz::run(&workspace, &fuzz::Plan { target, minutes }),
        Task::Bench(bench) => bench::run(&workspace, &bench),
        Task::Cross => cross::run(&workspace),
        Task::Reproduce => reproduce::run(&workspace),
        Task::VmTest(plan) => vm::run(&workspace, &plan),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            if error.is::<Refusal>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}
