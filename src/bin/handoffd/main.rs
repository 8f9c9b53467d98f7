//! Is the daemon, and the commands that ask it: arguments, logging, exit code; everything else is
//! the library's.

mod check;
mod cli;
mod doctor;
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
use handoffd::{Config, Error, Exit, Inheritance, Workers, one_line};
use logging::Destination;
use metrics::WithMetrics;
use serve::{Serve, Watched};

/// For how many descriptors there is room from the first: 128 KiB in the kernel. A connection has
/// one, a proxied one two, and more while it is spliced.
const DESCRIPTORS: u64 = 16_384;

fn main() -> ExitCode {
    let command = cli::parse(handoffd::runtime_directory().as_deref());
    let done = match command {
        Ok(Command::Serve(arguments)) => return serve(arguments),
        Ok(Command::Check(arguments)) => check::run(&arguments),
        Ok(Command::Reload { control, options }) => reload::run(control, &options),
        Ok(Command::Status { control, form, span }) => status::run(control, form, span),
        Ok(Command::Doctor { control, unit, scope }) => doctor::run(control, unit, scope),
        Err(cli::Answer::Print(text)) => output::print("what was asked for", &text),
        Err(cli::Answer::Refuse { why, exit }) => {
            // A predecessor has to hear it. A preloaded library may have threads by now.
            if let Ok(inheritance) = Inheritance::take_beside_threads() {
                inheritance.refuse(&why);
            }
            return complain(&why, exit);
        }
    };
    match done {
        Ok(()) => code(Exit::Done),
        Err(error) => complain(&error, error.exit()),
    }
}

fn serve(arguments: Serve) -> ExitCode {
    // Before anything that could start a thread or open a descriptor. The daemon starts no other
    // programs, so a preloaded library may have threads; only an init needs a process with one
    // thread.
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
        Ok(()) => code(Exit::Done),
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
        // A predecessor may still have addresses that cannot be learned now.
        if !service.routes.resolve().await && inheritance.has_predecessor() {
            let error = Error::Unresolved;
            inheritance.refuse(&error);
            return Err(error);
        }
        tokio::select! {
            served = handoffd::run_on(workers, config, inheritance, Arc::clone(&service)) => served.map(drop),
            never = service.routes.watch() => match never {},
        }
    })
}

/// A connection is a descriptor: the soft limit is there for programs that use select(2), and this
/// one does not.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
            tracing::warn!(
                event = "limit.unchanged",
                soft,
                hard,
                "cannot raise the limit of open files"
            );
        }
    }
}

/// Lets the kernel's table of our descriptors grow while there is one thread. Later, each time that
/// it is doubled everything that needs a new descriptor waits until every processor has been seen
/// to use the old table no more (RCU): 5 to 15 ms, for every doubling from 64 up, while a successor
/// takes over thousands of connections.
fn make_room_for_descriptors() {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    if let Some(last) =
        limit.min(DESCRIPTORS).checked_sub(1).and_then(|last| i32::try_from(last).ok())
    {
        // It stays as large as it was once. If it did not grow, it grows later.
        drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
    }
}

/// One line that says what was wrong, in the log or, if there is none yet or it takes no errors, on
/// standard error.
fn fail(error: &Error) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        let why = one_line(&error.to_string());
        tracing::error!(event = "process.failed", reason = why, "cannot serve: {why}");
        return code(error.exit());
    }
    complain(error, error.exit())
}

fn complain(why: &dyn Display, exit: Exit) -> ExitCode {
    // In one piece because a predecessor writes there too. If it is closed, the exit code has to
    // say it alone.
    logging::complain(&format!("handoffd: {}\n", one_line(&why.to_string())));
    code(exit)
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit as u8)
}
