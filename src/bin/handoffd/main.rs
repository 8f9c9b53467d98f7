//! The daemon and its commands: arguments, logging and exit codes. Everything else is in the
//! library.

mod check;
mod cli;
mod doctor;
mod generate;
mod identity;
mod listen;
mod logging;
mod metrics;
mod output;
mod reload;
mod serve;
mod status;

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;

use cli::Command;
use handoffd::{Config, Error, ExitStatus, Inheritance, Workers, one_line};
use logging::Destination;
use metrics::WithMetrics;
use serve::{Serve, Watched};

/// Size to which the file descriptor table is grown: 128 KiB in the kernel. A connection uses one
/// descriptor, a proxied one two, and more while it is spliced.
const DESCRIPTORS: u64 = 16_384;

fn main() -> ExitCode {
    let command = cli::parse(handoffd::runtime_directory().as_deref());
    let done = match command {
        Ok(Command::Serve(arguments)) => return serve(arguments),
        Ok(Command::Check(arguments)) => check::run(&arguments),
        Ok(Command::Reload { control, options }) => reload::run(control, &options),
        Ok(Command::Status { control, form, span }) => status::run(control, form, span),
        Ok(Command::Doctor { control, unit, scope }) => doctor::run(control, unit, scope),
        Ok(Command::Completions(shell)) => generate::completions(shell, cli::description()),
        Ok(Command::Man { directory }) => generate::man_pages(&directory, cli::description()),
        Err(cli::Answer::Print(text)) => output::print("what was asked for", &text),
        Err(cli::Answer::Refuse { why, exit }) => {
            // Tell a predecessor about the error. Other threads are allowed here, because a
            // preloaded library may have started some.
            if let Ok(inheritance) = Inheritance::take_beside_threads() {
                inheritance.refuse(&why);
            }
            return complain(&why, exit);
        }
    };
    match done {
        Ok(()) => code(ExitStatus::Done),
        Err(error) => complain(&error, error.exit()),
    }
}

fn serve(arguments: Serve) -> ExitCode {
    // Do this before anything that could start a thread or open a file descriptor. The daemon
    // starts no other programs, so a preloaded library may have threads. Only an init needs a
    // process with one thread.
    let taken = match arguments.watched {
        Watched::TheHead => Inheritance::take_beside_threads(),
        Watched::ThisProcess => Inheritance::take_under_init(),
    };
    let inheritance = match taken {
        Ok(inheritance) => inheritance,
        Err(error) => return fail(&error),
    };
    let destination = if inheritance.logs_to_journal() {
        Destination::Journal
    } else {
        Destination::StandardError
    };
    let generation = inheritance.generation();
    logging::start(destination, &arguments.log, arguments.log_format, generation);
    let config = Config { identity: identity::identity(&arguments.file), ..arguments.config };
    let control = config.control.clone().filter(|_| arguments.metrics);
    let service = WithMetrics::new(arguments.routes, control);
    let ended = match run(config, inheritance, service, arguments.workers) {
        Ok(()) => code(ExitStatus::Done),
        Err(error) => fail(&error),
    };
    logging::finish();
    ended
}

fn run(
    config: Config,
    inheritance: Inheritance,
    service: WithMetrics,
    workers: Option<NonZeroUsize>,
) -> Result<(), Error> {
    raise_descriptor_limit();
    make_room_for_descriptors();
    let count = workers
        .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (runtime, workers) = match runtime.and_then(|runtime| Ok((runtime, Workers::start(count)?)))
    {
        Ok(started) => started,
        Err(source) => {
            let error = Error::System { doing: "start the runtime", source };
            inheritance.refuse(&error);
            return Err(error);
        }
    };
    let service = Arc::new(service);
    runtime.block_on(async {
        // A predecessor may still have addresses that cannot be resolved now.
        if !service.routes.resolve().await && inheritance.has_predecessor() {
            let error = Error::Unresolved;
            inheritance.refuse(&error);
            return Err(error);
        }
        tokio::select! {
            served = handoffd::run_on(workers, config, inheritance, Arc::clone(&service)) => {
                served.map(drop)
            }
            never = service.routes.watch() => match never {},
        }
    })
}

/// Raises the soft limit of open files to the hard limit, because each connection needs a file
/// descriptor. The soft limit only protects programs that use select(2), which this one does not.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
            tracing::warn!(
                event = "limit.unchanged",
                soft,
                hard,
                "cannot raise the limit of open files to its maximum"
            );
        }
    }
}

/// Grows the kernel's file descriptor table while there is one thread. Later, each time the table
/// doubles, every call that needs a new descriptor waits for an RCU grace period of 5 to 15 ms. A
/// successor that takes over thousands of connections would wait for each doubling from 64 up.
fn make_room_for_descriptors() {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    if let Some(last) =
        limit.min(DESCRIPTORS).checked_sub(1).and_then(|last| i32::try_from(last).ok())
    {
        // The table never shrinks again. If it cannot grow now, it grows later.
        drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
    }
}

/// Reports an error as one line in the log. Without a log, or if the log takes no errors, writes to
/// standard error.
fn fail(error: &Error) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        let why = one_line(&error.to_string());
        tracing::error!(event = "process.failed", reason = why, "cannot serve: {why}");
        return code(error.exit());
    }
    complain(error, error.exit())
}

fn complain(why: &dyn Display, exit: ExitStatus) -> ExitCode {
    // Write the line in one piece, because a predecessor writes to standard error too. If it is
    // closed, only the exit code reports the error.
    logging::complain(&format!("handoffd: {}\n", one_line(&why.to_string())));
    code(exit)
}

fn code(exit: ExitStatus) -> ExitCode {
    ExitCode::from(exit as u8)
}
