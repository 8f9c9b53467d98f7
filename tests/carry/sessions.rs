//! Sessions of real programs live through handoffs: PostgreSQL with psql, and OpenSSH, each behind the proxy.
//!
//! What they say to each other is theirs: a byte that is lost, repeated or altered ends an SSH session by its checksums, and a
//! database's by its protocol. The servers are the test's own, in folders of their own, and are ended by it. They come from
//! Debian's packages `postgresql` and `openssh-server`; where there are none the tests fail, for what they hold would go unseen.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use crate::generations::Generations;
use crate::support::{assert_becomes, free_port, signal};

const HANDOFFS: usize = 20;

/// A server, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // PostgreSQL's fast shutdown; an sshd ends at either.
        signal(self.0.id(), Signal::SIGINT);
        signal(self.0.id(), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Runs a command to its end, which must be a good one.
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A client, which a test that fails does not leave behind.
struct Session(Child);

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hands over again and again while a session is at work: each time something has come of it since, and there is more to come.
fn hand_over(line: &mut Generations, received: &AtomicUsize, mut at_work: impl FnMut(usize)) {
    for number in 0..HANDOFFS {
        let before = received.load(Ordering::Relaxed);
        at_work(number);
        assert_becomes(&true, || received.load(Ordering::Relaxed) > before);
        line.hand_over();
    }
}

/// Says that it is over, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads to the end, and lets others know how much it was so far.
fn listen(mut said: impl Read, received: &AtomicUsize, mut hear: impl FnMut(&[u8])) {
    let mut piece = vec![0; 32 * 1024];
    while let length @ 1.. = said.read(&mut piece).unwrap() {
        hear(&piece[..length]);
        received.fetch_add(length, Ordering::Relaxed);
    }
}

#[test]
fn a_database_session_lives_through_twenty_handoffs_in_the_middle_of_its_work() {
    /// Rows of each answer that is on its way while the daemon is replaced: about two megabytes.
    const ROWS: usize = 300_000;
    let folder = tempfile::tempdir().unwrap();
    let (_server, socket) = postgres(&folder);
    let mut line = Generations::carrying(&["proxy", "--listen", "127.0.0.1:0", "--to", socket.to_str().unwrap()]);
    let address = line.line.address();
    let (host, port) = address.split_once(':').unwrap();
    let mut session = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", port, "-U", "postgres", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("psql is needed, of Debian's package postgresql-client");
    let (mut words, said) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let mut session = Session(session);
    let received = AtomicUsize::new(0);
    let text = thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut text = Vec::new();
            listen(said, &received, |piece| text.extend_from_slice(piece));
            String::from_utf8(text).unwrap()
        });
        let mut say = |text: String| words.write_all(text.as_bytes()).unwrap();
        say("select pg_backend_pid();\ncreate temporary table work (n int);\nbegin;\n".to_owned());
        hand_over(&mut line, &received, |number| {
            say(format!("insert into work values ({number});\ncopy (select generate_series(1, {ROWS})) to stdout;\n"));
        });
        say("commit;\nselect count(*), sum(n) from work;\nselect pg_backend_pid();\n".to_owned());
        drop(words);
        listener.join().unwrap()
    });
    assert!(session.0.wait().unwrap().success());
    let (first, rest) = text.split_once('\n').unwrap();
    let rows: String = (1..=ROWS).map(|row| format!("{row}\n")).collect();
    let sum = HANDOFFS * (HANDOFFS - 1) / 2;
    // The same process of the server, the same transaction, every row of every answer.
    let expected = rows.repeat(HANDOFFS) + &format!("{HANDOFFS}|{sum}\n{first}\n");
    assert!(rest == expected, "{} bytes instead of {}", rest.len(), expected.len());
    line.stop();
}

/// A PostgreSQL of the test's own, and the socket that it listens on.
fn postgres(folder: &TempDir) -> (Server, PathBuf) {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let programs = versions.map(|version| version.unwrap().path().join("bin")).max();
    let programs = programs.expect("a PostgreSQL is needed, of Debian's package postgresql");
    // It refuses to be root.
    let user = User::from_name("postgres").unwrap().expect("its package makes a user");
    chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    let by_its_user = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(programs.join(program));
        command.current_dir(folder.path());
        command
    };
    let data = folder.path().join("data");
    run(by_its_user("initdb").args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D"]).arg(&data));
    let server = by_its_user("postgres")
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(folder.path())
        .args(["-c", "listen_addresses=", "-c", "fsync=off"])
        .stderr(fs::File::create(folder.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let server = Server(server);
    let ready = || {
        let mut ask = Command::new(programs.join("pg_isready"));
        ask.args(["-q", "-h"]).arg(folder.path()).status().unwrap().success()
    };
    assert_becomes(&true, ready);
    (server, folder.path().join(".s.PGSQL.5432"))
}

#[test]
fn an_ssh_session_lives_through_twenty_handoffs_in_the_middle_of_its_work() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, address) = sshd(folder.path());
    let mut line = Generations::carrying(&["proxy", "--listen", "127.0.0.1:0", "--to", &address]);
    let proxy = line.line.address();
    let mut session = Command::new("ssh")
        .args([
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ])
        .args(["-o", "LogLevel=ERROR", "-i"])
        .arg(folder.path().join("client"))
        .args(["-p", proxy.split_once(':').unwrap().1, "root@127.0.0.1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh is needed, of Debian's package openssh-client");
    let (words, said) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let mut session = Session(session);
    let (is_over, received) = (AtomicBool::new(false), AtomicUsize::new(0));
    let byte = |place: usize| u8::try_from((place ^ (place >> 8)) % 251).unwrap();
    let mut wrong = None;
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            // Whatever comes of it, it is dropped at the end of this, and the session ends.
            let mut words = words;
            let mut sent = 0;
            while !is_over.load(Ordering::Relaxed) {
                let piece: Vec<u8> = (sent..sent + 32 * 1024).map(byte).collect();
                if words.write_all(&piece).is_err() {
                    break;
                }
                sent += piece.len();
            }
            sent
        });
        let listener = scope.spawn(|| {
            let mut place = 0;
            listen(said, &received, |piece| {
                if !piece.iter().copied().eq((place..place + piece.len()).map(byte)) {
                    wrong.get_or_insert(place);
                }
                place += piece.len();
            });
        });
        let over = Over(&is_over);
        hand_over(&mut line, &received, |_| {});
        drop(over);
        listener.join().unwrap();
        sender.join().unwrap()
    });
    assert!(session.0.wait().unwrap().success());
    let received = received.into_inner();
    assert_eq!(wrong, None, "something is wrong after so many bytes");
    assert!(sent == received, "{sent} bytes were sent, and {received} came back");
    println!("{sent} bytes there and back");
    line.stop();
}

/// An sshd of the test's own, and where it listens. It lets in whoever has the key `client` of the folder.
fn sshd(folder: &Path) -> (Server, String) {
    for key in ["host", "client"] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key)));
    }
    fs::copy(folder.join("client.pub"), folder.join("authorized")).unwrap();
    // Where its process without rights lives: made by the package's unit, if there is a systemd.
    fs::create_dir_all("/run/sshd").unwrap();
    fs::set_permissions("/run/sshd", fs::Permissions::from_mode(0o755)).unwrap();
    let port = free_port();
    let text = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n",
        folder.display()
    );
    fs::write(folder.join("config"), text).unwrap();
    let server = Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f"])
        .arg(folder.join("config"))
        .stderr(fs::File::create(folder.join("log")).unwrap())
        .spawn()
        .expect("an sshd is needed, of Debian's package openssh-server");
    let (server, address) = (Server(server), format!("127.0.0.1:{port}"));
    assert_becomes(&true, || std::net::TcpStream::connect(&address).is_ok());
    (server, address)
}
