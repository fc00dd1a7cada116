//! The `shale` program: the command line, and the processes `serve` and `node`.
//!
//! ```text
//!   grammar    what can be said (clap)            commands/  one file a noun: public API only
//!   session    which server, which token          waiting    tasks: progress, outcome, time-out
//!   output     table, wide, json, yaml, name      local      serve, node, down
//!   doctor     what this host has of what is needed
//! ```
//!
//! Exit status: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, busy or refused, 5 no space,
//! 6 denied, 7 time-out (the task goes on). Errors are one line: `error: what (code, exit)  hint`.
#![forbid(unsafe_code)]

mod commands;
mod doctor;
mod grammar;
mod local;
mod output;
mod session;
mod tree;
mod views;
mod waiting;
mod yaml;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use model::{Exit, Problem};

use grammar::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // help and version are no errors; nothing more can be done when even this fails
            error.print().ok();
            return if error.use_stderr() { code(Exit::Usage) } else { code(Exit::Ok) };
        }
    };
    match run(cli) {
        Ok(exit) => code(exit),
        Err(problem) => {
            writeln!(std::io::stderr(), "error: {problem}").ok();
            code(problem.exit())
        }
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit.number())
}

fn run(cli: Cli) -> Result<Exit, Problem> {
    match cli.command {
        Command::Serve(serve) => local::serve(&cli.place, &serve),
        Command::Node(node) => local::node(&cli.place, &node),
        Command::Down(_) => local::down(&cli.place),
        Command::Doctor(command) => doctor::doctor(&cli.place, &command),
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shale", &mut text);
            output::print(&String::from_utf8_lossy(&text))?;
            Ok(Exit::Ok)
        }
        Command::Datastore(command) => with_server(&cli.place, |s| Box::pin(s.datastore(command))),
        Command::Volume(command) => with_server(&cli.place, |s| Box::pin(s.volume(command))),
        Command::Snapshot(command) => with_server(&cli.place, |s| Box::pin(s.snapshot(command))),
        Command::Template(command) => with_server(&cli.place, |s| Box::pin(s.template(command))),
        Command::Task(command) => with_server(&cli.place, |s| Box::pin(s.task(command))),
        Command::Alarm(command) => with_server(&cli.place, |s| Box::pin(s.alarm(command))),
        Command::Token(command) => with_server(&cli.place, |s| Box::pin(s.token(command))),
    }
}

type Work = std::pin::Pin<Box<dyn Future<Output = Result<(), Problem>>>>;

/// Runs a command that talks to the server.
fn with_server(
    place: &grammar::Place,
    command: impl FnOnce(session::Session) -> Work,
) -> Result<Exit, Problem> {
    let session = session::Session::open(place)?;
    runtime()?.block_on(command(session)).map(|()| Exit::Ok)
}

fn runtime() -> Result<tokio::runtime::Runtime, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| {
        Problem::new(
            model::Code::Internal,
            format!("The system gives no I/O to this program: {e}."),
        )
    })
}
