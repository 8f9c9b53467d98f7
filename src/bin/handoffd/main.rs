//! The program `handoffd`: this module reads the arguments, starts the log, runs the daemon or a
//! command, and sets the exit code. The library does the work of the daemon.

mod check;
mod cli;
mod doctor;
mod failure;
mod generate;
mod identity;
mod logging;
mod metrics;
mod output;
mod reload;
mod routes;
mod settings;
mod status;

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cli::Command;
use failure::Failure;
use handoffd::listen::METRICS_LISTENER;
use handoffd::program::ProgramConfig;
use handoffd::text::one_line;
use handoffd::{Builder, Config, Echo, Error, Inheritance, Workers};
use logging::Destination;
use metrics::WithMetrics;
use routes::{BuiltinService, Routes};
use settings::{Served, StartSettings, Watched};

/// The number of entries to which the process grows its file descriptor table. This takes 128 KiB
/// in the kernel. A connection uses one file descriptor, a proxied connection two, and a connection
/// that uses splice(2) more.
const DESCRIPTORS: u64 = 16_384;

fn main() -> ExitCode {
    let command = cli::parse(handoffd::control::runtime_directory().as_deref());
    let done = match command {
        Ok(Command::Serve(settings)) => return serve(*settings),
        Ok(Command::Print(text)) => output::print("the help or the version", &text),
        Ok(Command::Check(settings)) => check::run(&settings),
        Ok(Command::Reload { control, options }) => reload::run(control, &options),
        Ok(Command::Status { control, form, span }) => status::run(control, form, span),
        Ok(Command::Doctor { control, unit, scope }) => doctor::run(control, unit, scope),
        Ok(Command::Completions(shell)) => generate::completions(shell, cli::description()),
        Ok(Command::Man { directory }) => generate::man_pages(&directory, cli::description()),
        Err(failure) => {
            // Report the error to a predecessor, if there is one. Other threads are allowed here,
            // because a preloaded library may have started some.
            if let Ok(inheritance) = Inheritance::take_beside_threads() {
                inheritance.refuse(&failure);
            }
            Err(failure)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, error.exit_code()),
    }
}

fn serve(settings: StartSettings) -> ExitCode {
    // Take the inherited sockets before anything can start a thread or open a file descriptor.
    // Threads of a preloaded library are allowed, because this process never changes its own
    // environment. Only a process that forks an init must have a single thread.
    let taken = match settings.watched {
        Watched::ActiveGeneration => Inheritance::take_beside_threads(),
        Watched::ThisProcess => Inheritance::take_under_init(),
    };
    let inheritance = match taken {
        Ok(inheritance) => inheritance,
        Err(error) => return fail(&error.into()),
    };
    let destination = if inheritance.logs_to_journal() {
        Destination::Journal
    } else {
        Destination::StandardError
    };
    let generation = inheritance.generation();
    logging::start(destination, &settings.log, settings.log_format, generation);
    let StartSettings { mut config, served, metrics, workers, file, .. } = settings;
    config.identity = identity::identity(&file);
    let ended = match served {
        Served::Services(routes) => {
            let control = config.control.clone().filter(|_| metrics);
            run(config, inheritance, WithMetrics::new(routes, control), workers)
        }
        Served::Program(program) => {
            let control = config.control.clone().filter(|_| metrics);
            run_program(config, inheritance, *program, control, workers)
        }
    };
    let ended = match ended {
        Ok(()) => ExitCode::SUCCESS,
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
) -> Result<(), Failure> {
    let (runtime, server) = prepare(config, inheritance, workers)?;
    let service = Arc::new(service);
    runtime.block_on(async {
        // If there is a predecessor, let it keep serving. It may still know addresses for host
        // names that do not resolve now.
        if !service.routes.resolve().await && server.inheritance().has_predecessor() {
            let error = Failure::Unresolved;
            server.refuse(&error);
            return Err(error);
        }
        tokio::select! {
            served = server.run(Arc::clone(&service)) => Ok(served.map(drop)?),
            never = service.routes.watch() => match never {},
        }
    })
}

fn run_program(
    config: Config,
    inheritance: Inheritance,
    program: ProgramConfig,
    metrics: Option<PathBuf>,
    workers: Option<NonZeroUsize>,
) -> Result<(), Failure> {
    // If the program accepts connections itself, one worker thread of this process is enough.
    let workers = if program.attach.is_private() { workers } else { Some(NonZeroUsize::MIN) };
    let (runtime, server) = prepare(config, inheritance, workers)?;
    let names = metrics.is_some().then(|| METRICS_LISTENER.parse()).transpose()?;
    // No client reaches this echo service, because the program serves all listeners except the
    // metrics listener.
    let service = WithMetrics::new(Routes::all(BuiltinService::Echo(Echo)), metrics);
    let names = names.into_iter().collect();
    Ok(runtime.block_on(server.run_program_beside(program, service, names)).map(drop)?)
}

/// Starts the runtime and the workers, and enlarges the file descriptor table.
fn prepare(
    config: Config,
    inheritance: Inheritance,
    workers: Option<NonZeroUsize>,
) -> Result<(tokio::runtime::Runtime, Builder), Failure> {
    raise_descriptor_limit();
    make_room_for_descriptors();
    let count = workers
        .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let started = runtime.and_then(|runtime| Ok((runtime, Workers::start(count)?)));
    let server = Builder::new(inheritance).configure(|settings| *settings = config);
    match started {
        Ok((runtime, workers)) => Ok((runtime, server.workers(workers))),
        Err(source) => {
            let error = Error::System { doing: "start the runtime", source };
            server.refuse(&error);
            Err(error.into())
        }
    }
}

/// Raises the soft limit of open files to the hard limit, because each connection needs a file
/// descriptor. The soft limit only protects programs that use select(2), which this daemon does
/// not use.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
            tracing::warn!(
                event = "limit.unchanged",
                soft,
                hard,
                "cannot raise the soft limit on open files to the hard limit, keeping it at {soft}"
            );
        }
    }
}

/// Grows the kernel's file descriptor table while the process has only one thread. In a process
/// with several threads, a call that doubles the table waits 5 to 15 ms for an RCU grace period.
/// Without this function, a successor that takes over thousands of connections would wait for each
/// doubling.
fn make_room_for_descriptors() {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    if let Some(last) =
        limit.min(DESCRIPTORS).checked_sub(1).and_then(|last| i32::try_from(last).ok())
    {
        // A copy with a high number makes the kernel grow the table. The copy can be closed at
        // once, because the table never shrinks. If the call fails, the table grows when it must.
        drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last));
    }
}

/// Reports an error as one line in the log. Writes the line to standard error if the log has not
/// started or does not accept errors.
fn fail(error: &Failure) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        let why = one_line(&error.to_string());
        tracing::error!(event = "process.failed", reason = why, "exiting with an error: {why}");
        return error.exit_code();
    }
    complain(error, error.exit_code())
}

fn complain(why: &dyn Display, code: ExitCode) -> ExitCode {
    // Write the line in one piece, because a predecessor writes to the same standard error. If
    // standard error is closed, only the exit code reports the failure.
    logging::complain(&format!("handoffd: {}\n", one_line(&why.to_string())));
    code
}
