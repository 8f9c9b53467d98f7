//! A server that shows the events of its life, and what a server can do about them.
//!
//! `cargo run --example life -- MODE ADDRESS` serves an echo. Each MODE shows one thing; see the
//! functions below. The tests in tests/life.rs use all of them. A successor listens on the address
//! in the file `address`, if there is one.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use handoffd::carry::CarriedState;
use handoffd::embed::{Life, Stop};
use handoffd::listen::Stream;
use handoffd::{Builder, Config, Echo};
use rustix::fs::FlockOperation;
use tokio::time::sleep;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Box<dyn Error>> {
    let server = Builder::from_env()?;
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .init();
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().ok_or("expected a mode")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7001".to_owned());
    let address = fs::read_to_string("address").unwrap_or(address);
    let server = server.listen(&format!("echo={address}"))?;
    let server = if Path::new("no-admin").exists() {
        server.configure(hurry)
    } else {
        server.listen("admin=127.0.0.1:0")?.last("admin").configure(hurry)
    };
    match mode.as_str() {
        "alone" => server.serve_with(async |life| {
            life.alone(work);
            echo(life).await
        })?,
        "alone-deaf" => server.serve_with(async |life| {
            life.alone(|_| deaf_work());
            echo(life).await
        })?,
        // The task has a minute to end, and the bake takes as long.
        "alone-long" => server
            .configure(|config| {
                config.alone_timeout = Duration::from_secs(60);
                config.bake = Duration::from_secs(60);
            })
            .serve_with(async |life| {
                life.alone(|_| deaf_work());
                echo(life).await
            })?,
        "alone-slow" => server.serve_with(async |life| {
            life.alone(slow_work);
            echo(life).await
        })?,
        // The library's own server: the hooks are the same.
        "alone-service" => {
            let runtime = tokio::runtime::Runtime::new()?;
            let _inside = runtime.enter();
            server.life().alone(work);
            runtime.block_on(server.run(Echo))?
        }
        "roll-back" => server.serve_with(roll_back)?,
        "refuse" => {
            let ended = server.serve_with(refuse);
            // What `main` does after the server has ended, it does also after a refusal.
            fs::write(format!("ended-{}", std::process::id()), "")?;
            ended?
        }
        "stuck" => server.serve_with(stuck)?,
        "warm-up" => server.serve_with(warm_up)?,
        "slow-again" => server.serve_with(slow_again)?,
        "offer" => server.serve_with(offer)?,
        "deaf" => server.serve_with(deaf)?,
        "blocked" => server.serve_with(blocked)?,
        "blocking" => server.serve_with(blocking)?,
        "blocking-here" => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(server.serve_here(blocking))?
        }
        "panicking" => server.serve_with(panicking)?,
        "panicking-here" => {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(server.serve_here(panicking))?
        }
        "copy" => server.serve_with(async |life| {
            let _copy = life.tcp_listener("echo")?;
            echo(life).await
        })?,
        "echo" => server.serve_with(echo)?,
        "early" => server.serve_with(async |life| {
            let _dropped_early = (life.acceptor("echo")?, life.ready());
            life.retired().await;
            Ok::<_, handoffd::Error>(())
        })?,
        "threads" => server.serve_with(threads)?,
        "one-thread" => server
            .configure(|config| config.drain_timeout = Duration::from_secs(60))
            .serve_with(one_thread)?,
        "long-bake" => {
            server.configure(|config| config.bake = Duration::from_secs(60)).serve_with(echo)?
        }
        // The server returns after its first client, or never, and may have a copy of its socket.
        "long-bake-once" | "long-bake-deaf" | "long-bake-copy" => {
            let server = server.configure(|config| {
                config.bake = Duration::from_secs(60);
                config.drain_timeout = Duration::from_secs(3600);
            });
            server.serve_with(async |life| {
                if mode == "long-bake-once" {
                    let _client = (life.ready(), life.acceptor("echo")?.accept().await);
                    return Ok(());
                }
                if mode == "long-bake-copy" {
                    drop(life.tcp_listener("echo")?);
                }
                deaf(life).await
            })?
        }
        "in-runtime" => {
            tokio::runtime::Runtime::new()?.block_on(async { server.serve_with(echo) })?
        }
        other => return Err(format!("the mode {other} is unknown").into()),
    };
    Ok(())
}

/// Sets short time limits, so that the effect of each is seen soon.
fn hurry(config: &mut Config) {
    config.bake = Duration::from_millis(10);
    config.ready_timeout = Duration::from_secs(2);
    config.drain_timeout = Duration::from_secs(2);
    config.alone_timeout = Duration::from_millis(200);
}

/// Serves an echo on the first listener, with a thread for each connection.
async fn threads(life: Life) -> Result<(), Failure> {
    let listener = life.blocking("echo")?;
    std::thread::spawn(move || {
        while let Some((client, _)) = listener.accept_tcp() {
            std::thread::spawn(move || io::copy(&mut &*client, &mut &*client));
        }
    });
    life.ready();
    life.draining().await;
    Ok(())
}

/// Serves an echo on the first listener, with one thread for all connections, one after another.
async fn one_thread(life: Life) -> Result<(), Failure> {
    let listener = life.blocking("echo")?;
    std::thread::spawn(move || {
        while let Some((client, _)) = listener.accept_tcp() {
            let _ = io::copy(&mut &*client, &mut &*client);
        }
    });
    life.ready();
    life.draining().await;
    Ok(())
}

/// Serves an echo on both listeners, or on the first one if the file `no-admin` exists.
async fn echo(life: Life) -> Result<(), Failure> {
    let (mut acceptor, mut admin) = (life.acceptor("echo")?, life.acceptor("admin").ok());
    life.ready();
    let main = async {
        while let Some((client, _)) = acceptor.accept().await {
            tokio::spawn(answer(client));
        }
        drop(acceptor);
    };
    let admin_drains = life.draining_of("admin").map(|drains| {
        tokio::spawn(async {
            drains.await;
            let _ = fs::write("admin-drains", "");
        })
    });
    let side = async {
        while let Some(admin) = &mut admin {
            let Some((client, _)) = admin.accept().await else { break };
            tokio::spawn(answer(client));
        }
        if let Ok(drains) = admin_drains {
            let _ = drains.await;
        }
    };
    tokio::join!(main, side);
    Ok(())
}

async fn answer(client: Stream) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(client);
    tokio::io::copy(&mut from, &mut to).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut to).await
}

/// Works in one generation only. The file `lock` is the witness that nobody else works.
async fn work(stop: Stop) {
    let witness = File::create("lock").and_then(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    });
    if witness.is_err() {
        let _ = File::create("overlap");
    }
    let _ = log("begin");
    stop.requested().await;
    let _ = log("end");
}

/// Works as [`work`] does, but takes longer to end than it may.
async fn slow_work(stop: Stop) {
    let _ = log("begin");
    stop.requested().await;
    sleep(Duration::from_millis(400)).await;
    let _ = log("end");
}

/// Appends a line to the file `work`.
fn log(what: &str) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open("work")?;
    file.write_all(format!("{what} {}\n", std::process::id()).as_bytes())
}

/// Ignores the request to stop.
async fn deaf_work() {
    std::future::pending().await
}

/// Gives the handoff back while the file `broken` exists.
async fn roll_back(life: Life) -> Result<(), Failure> {
    if Path::new("broken").exists() {
        let life = life.clone();
        tokio::spawn(async move {
            life.roll_back("the cache is broken");
        });
    }
    echo(life).await
}

/// Refuses to serve while the file `broken` exists.
async fn refuse(life: Life) -> Result<(), Failure> {
    if Path::new("broken").exists() {
        return Err("there is no database".into());
    }
    echo(life).await
}

/// Blocks its thread before it is ready, if the file `broken` exists.
async fn stuck(life: Life) -> Result<(), Failure> {
    if Path::new("broken").exists() {
        std::thread::park();
    }
    echo(life).await
}

/// Takes longer to start than the ready timeout, and asks for more time.
async fn warm_up(life: Life) -> Result<(), Failure> {
    for _ in 0..3 {
        life.extend_start(Duration::from_secs(60));
        sleep(Duration::from_secs(1)).await;
    }
    echo(life).await
}

/// Is not ready as long as the file `hold` exists.
async fn slow_again(life: Life) -> Result<(), Failure> {
    while Path::new("hold").exists() {
        sleep(Duration::from_millis(5)).await;
    }
    echo(life).await
}

/// Passes the number of generations so far to the successor, and writes it to the file `count`.
async fn offer(life: Life) -> Result<(), Failure> {
    let counting = life.clone();
    tokio::spawn(async move {
        let state = counting.from_predecessor().await;
        let before: u64 = state.map_or(0, |state| {
            assert_eq!(state.format, "count/1");
            String::from_utf8_lossy(&state.bytes).parse().unwrap_or(0)
        });
        let bytes = (before + 1).to_string().into_bytes();
        let _ = counting.offer(CarriedState::new("count/1", bytes));
        let _ = fs::write("count", (before + 1).to_string());
    });
    echo(life).await
}

/// Ignores the drain and the cut.
async fn deaf(life: Life) -> Result<(), Failure> {
    let mut acceptor = life.acceptor("echo")?;
    life.ready();
    while let Some((client, _)) = acceptor.accept().await {
        tokio::spawn(answer(client));
    }
    std::future::pending().await
}

/// Blocks the main thread for ever once the generation retires.
async fn blocked(life: Life) -> Result<(), Failure> {
    let mut acceptor = life.acceptor("echo")?;
    life.ready();
    while let Some((client, _)) = acceptor.accept().await {
        tokio::spawn(answer(client));
    }
    block();
    Ok(())
}

/// Blocks every thread of the runtime for ever, once a client has connected.
async fn blocking(life: Life) -> Result<(), Failure> {
    let mut acceptor = life.acceptor("echo")?;
    life.ready();
    while let Some((mut client, _)) = acceptor.accept().await {
        tokio::io::AsyncWriteExt::write_all(&mut client, b"blocked").await?;
        let mut client = Some(client);
        for _ in 0..tokio::runtime::Handle::current().metrics().num_workers() {
            let held = client.take();
            tokio::spawn(async move {
                block();
                drop(held);
            });
        }
    }
    Ok(())
}

/// Panics while a thread of the runtime blocks for ever, once a client has connected.
#[expect(clippy::panic, reason = "the test asks for a panic")]
async fn panicking(life: Life) -> Result<(), Failure> {
    let mut acceptor = life.acceptor("echo")?;
    life.ready();
    acceptor.accept().await;
    tokio::task::spawn_blocking(block);
    std::panic::panic_any("the server panics, as it was asked to")
}

#[expect(clippy::disallowed_methods, reason = "that is what it shows")]
fn block() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}
