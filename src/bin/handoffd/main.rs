//! Is the daemon: arguments, logging, exit code; everything else is the library's.

mod cli;
mod logging;

use std::io::Write;
use std::process::ExitCode;

use handoffd::{Config, Echo, Error, Exit, Inheritance};
use logging::Destination;

fn main() -> ExitCode {
    // Before anything that could start a thread or open a descriptor.
    let inheritance = match Inheritance::take() {
        Ok(inheritance) => inheritance,
        Err(error) => return fail(&error),
    };
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(cli::Answer::Print(text)) => return print(&text),
        Err(cli::Answer::Refuse(why)) => {
            inheritance.refuse(&why);
            return complain(&why, Exit::Usage);
        }
    };
    let destination = if inheritance.logs_to_journal() { Destination::Journal } else { Destination::StandardError };
    logging::start(destination, &arguments.log, inheritance.generation());
    match serve(arguments.config, inheritance) {
        Ok(()) => code(Exit::Done),
        Err(error) => fail(&error),
    }
}

fn serve(config: Config, inheritance: Inheritance) -> Result<(), Error> {
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            let error = Error::System { doing: "start the runtime", source };
            inheritance.refuse(&error);
            return Err(error);
        }
    };
    runtime.block_on(handoffd::run(config, inheritance, Echo)).map(drop)
}

/// A connection is a descriptor: the soft limit is there for programs that use select(2), and this one does not.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
            tracing::warn!(soft, hard, "cannot raise the limit of open files");
        }
    }
}

/// One line that says what was wrong, in the log or, if there is none yet or it takes no errors, on standard error.
fn fail(error: &Error) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(reason = %error, "cannot serve");
        return code(error.exit());
    }
    complain(error, error.exit())
}

fn complain(why: &dyn std::fmt::Display, exit: Exit) -> ExitCode {
    // If standard error is closed, the exit code has to say it alone.
    let _ = writeln!(std::io::stderr(), "handoffd: {why}");
    code(exit)
}

fn print(text: &str) -> ExitCode {
    match write!(std::io::stdout(), "{text}") {
        Ok(()) => code(Exit::Done),
        Err(_) => code(Exit::System),
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
