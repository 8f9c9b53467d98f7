//! A lab: a real systemd, booted in namespaces, with the shipped units installed. The test observes
//! it from outside.
//!
//! Commands run inside by nsenter(1), and files are reached through `/proc/PID/root`. Clients enter
//! the network namespace with their own thread. Everything inside disappears with the lab.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use crate::shipped::{script, shipped};
use crate::support::operator::Answered;
use crate::support::view::pause;
use crate::support::view::{are_all, is_asleep};
use crate::support::{DEADLINE, Operator, REAL, Stuck};
use crate::system::{System, root};

/// Where the shipped socket unit listens.
pub(crate) const ADDRESS: &str = "127.0.0.1:48879";
/// The path of the daemon inside: a link into the current release.
pub(crate) const PROGRAM: &str = "/usr/local/bin/handoffd";
/// The path inside at which the lab's folder is mounted.
const RELEASES: &str = "/opt/handoffd";

/// A booted systemd.
#[derive(Debug)]
pub(crate) struct Lab {
    boot: Child,
    /// The first process of the lab, by its process id outside.
    first: u32,
    folder: TempDir,
    releases: u32,
}

impl Lab {
    /// Boots a lab with an empty folder for releases and without units. Each of `mounts` is a path
    /// outside, and the path inside at which it is seen.
    pub(crate) fn bare(system: System, mounts: &[(&Path, &Path)]) -> Self {
        static NAMES: AtomicU32 = AtomicU32::new(0);
        let name = format!("lab-{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mut boot = Command::new(script("boot"));
        boot.arg(root(system)).arg(name);
        for (source, target) in [(folder.path(), Path::new(RELEASES))].iter().chain(mounts) {
            boot.arg(format!("{}:{}", source.display(), target.display()));
        }
        let mut boot = boot.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(boot.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let first =
            said.trim().parse().unwrap_or_else(|_| panic!("systemd did not boot: {said:?}"));
        Self { boot, first, folder, releases: 0 }
    }

    /// Boots a lab with the daemon as release 1 and the shipped units, which are not started.
    pub(crate) fn boot(system: System) -> Self {
        let mut lab = Self::bare(system, &[]);
        lab.deploy(|release| {
            // A hard link if possible, else a copy.
            let program = release.join("handoffd");
            fs::hard_link(REAL, &program).or_else(|_| fs::copy(REAL, &program).map(drop)).unwrap();
        });
        symlink(Path::new(RELEASES).join("current/handoffd"), lab.path(PROGRAM)).unwrap();
        lab.install_units();
        lab
    }

    /// Boots a lab like [`Lab::boot`] whose service listens on [`ADDRESS`].
    pub(crate) fn serving(system: System) -> Self {
        let lab = Self::boot(system);
        lab.systemctl(&["start", "handoffd.socket", "handoffd.service"]).well();
        lab
    }

    /// Connects this lab to another one by a virtual cable. Each end is an interface with the given
    /// name and address.
    pub(crate) fn cable(
        &self,
        (here, address): (&str, &str),
        other: &Self,
        (there, peer): (&str, &str),
    ) {
        let ends = [
            "link",
            "add",
            "name",
            here,
            "type",
            "veth",
            "peer",
            "name",
            there,
            "netns",
            &other.first.to_string(),
        ];
        // Only the network namespace is entered, because the other lab's process has no process id
        // inside this one.
        let laid = self.inside(|| Command::new("ip").args(ends).status().unwrap());
        assert!(laid.success());
        for (lab, name, address) in [(self, here, address), (other, there, peer)] {
            lab.run(&["ip", "address", "add", address, "dev", name]).well();
            lab.run(&["ip", "link", "set", name, "up"]).well();
        }
    }

    /// Returns the path outside of a path inside.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.first))
            .join(path.as_ref().strip_prefix("/").unwrap())
    }

    /// Installs the shipped units.
    pub(crate) fn install_units(&self) {
        for unit in ["handoffd.socket", "handoffd.service"] {
            self.install(unit, &fs::read_to_string(shipped(unit)).unwrap());
        }
    }

    /// Installs a unit or a drop-in, and reloads systemd's configuration.
    pub(crate) fn install(&self, name: &str, text: &str) {
        let path = self.path("/etc/systemd/system").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.systemctl(&["daemon-reload"]).well();
    }

    /// Installs a drop-in that makes the daemon drain connections, so that they keep an old
    /// generation alive.
    pub(crate) fn drain(&self) {
        self.start_with("--no-carry");
    }

    /// Installs a drop-in that starts the daemon with these arguments.
    pub(crate) fn start_with(&self, arguments: &str) {
        let text = format!("[Service]\nExecStart=\nExecStart={PROGRAM} {arguments}\n");
        self.install("handoffd.service.d/arguments.conf", &text);
    }

    /// Removes the socket unit, and installs a drop-in that makes the daemon bind its address
    /// itself.
    pub(crate) fn bind_without_socket_unit(&self, arguments: &str) {
        fs::remove_file(self.path("/etc/systemd/system/handoffd.socket")).unwrap();
        self.start_with(arguments);
    }

    /// Creates the next release with `fill`, and switches the link to it.
    pub(crate) fn deploy(&mut self, fill: impl FnOnce(&Path)) {
        self.releases += 1;
        let release = self.folder.path().join(self.releases.to_string());
        fs::create_dir(&release).unwrap();
        fill(&release);
        self.flip(self.releases);
    }

    /// Creates the next release with a shell script instead of the daemon. In the script, `$REAL`
    /// is the daemon of release 1.
    pub(crate) fn deploy_script(&mut self, script: &str) {
        self.deploy(|release| {
            install(release, &format!("#!/bin/bash\nREAL={RELEASES}/1/handoffd\n{script}\n"))
        });
    }

    /// Switches the link back to the first release, which works.
    pub(crate) fn deploy_good(&self) {
        self.flip(1);
    }

    fn flip(&self, release: u32) {
        let draft = self.folder.path().join("draft");
        symlink(release.to_string(), &draft).unwrap();
        fs::rename(draft, self.folder.path().join("current")).unwrap();
    }

    /// Returns a command that runs inside.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &self.first.to_string(),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            "-C",
            "-r",
            "-w",
        ]);
        command
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"])
            .args(words);
        command
    }

    /// Starts a command inside.
    pub(crate) fn start(&self, words: &[&str]) -> Operator {
        Operator::start(self.command(words))
    }

    /// Runs a command inside to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Answered {
        self.start(words).wait()
    }

    /// Runs systemctl inside.
    pub(crate) fn systemctl(&self, words: &[&str]) -> Answered {
        self.run(&[&["systemctl"], words].concat())
    }

    /// Returns a property of the service.
    pub(crate) fn show(&self, property: &str) -> String {
        let shown =
            self.systemctl(&["show", "handoffd.service", "--value", "--property", property]);
        shown.well().trim().to_owned()
    }

    /// Returns the main process by its process id inside.
    pub(crate) fn main_pid(&self) -> u32 {
        self.show("MainPID").parse().unwrap()
    }

    /// Returns the daemon's status of all generations.
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&[PROGRAM, "status", "--json"]).well()).unwrap()
    }

    /// Waits until `look` returns true.
    pub(crate) fn wait(&self, what: &str, look: impl Fn(&Self) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !look(self) {
            assert!(
                Instant::now() < until,
                "{what}: not within the deadline\n{}",
                self.journal_text()
            );
            // Each look starts several processes.
            pause(50);
        }
    }

    /// Runs `act` in the network namespace of the lab. Threads that it starts stay there.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| {
                let network = fs::File::open(format!("/proc/{}/ns/net", self.first)).unwrap();
                setns(network, CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            acting.join().unwrap()
        })
    }

    /// Connects a client that is never idle until its reply is read. Must be called in
    /// [`Lab::inside`].
    pub(crate) fn busy_client(&self) -> Stuck {
        let processes: Vec<u32> =
            self.processes().into_iter().filter_map(|pid| self.find(pid)).collect();
        let sleep = || processes.iter().all(|pid| is_asleep(*pid).unwrap_or(true));
        Stuck::on_sleeping_process(sleep, ADDRESS)
    }

    /// Freezes every process of the service, so that none accepts a client.
    pub(crate) fn freeze(&self) {
        self.systemctl(&["kill", "--signal=STOP", "handoffd.service"]).well();
        // A process that was about to end may be gone by now.
        let processes: Vec<u32> =
            self.processes().into_iter().filter_map(|pid| self.find(pid)).collect();
        // A running process stops a moment after the signal was sent.
        self.wait("all processes to freeze", |_| {
            processes.iter().all(|pid| are_all(*pid, 'T').unwrap_or(true))
        });
    }

    /// Returns every record of the unit in the journal.
    pub(crate) fn journal(&self) -> Vec<serde_json::Value> {
        self.journal_of("handoffd.service")
    }

    /// Returns every record of a unit in the journal.
    pub(crate) fn journal_of(&self, unit: &str) -> Vec<serde_json::Value> {
        self.run(&["journalctl", "--sync"]).well();
        let words = ["journalctl", "-o", "json", "-u", unit, "--no-pager", "--all"];
        let text = self.run(&words).well();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the journal as an operator reads it.
    pub(crate) fn journal_text(&self) -> String {
        let _ = self.run(&["journalctl", "--sync"]);
        self.run(&["journalctl", "--no-pager", "-u", "handoffd.service"]).out
    }

    /// Returns the process id outside of a process inside.
    pub(crate) fn outer(&self, number: u32) -> u32 {
        self.find(number).unwrap_or_else(|| panic!("no process {number} in there"))
    }

    /// Returns the process id outside, or `None` if there is no such process inside.
    fn find(&self, number: u32) -> Option<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.first);
        let mut pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            namespace(*pid) == ours
                && numbers.split_whitespace().last() == Some(&number.to_string())
        };
        pids.find(is_it)
    }

    /// Returns every process of the service by its process id inside.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let group = "/sys/fs/cgroup/system.slice/handoffd.service/cgroup.procs";
        let listed = self.run(&["cat", group]);
        // Without processes the control group does not exist.
        listed.out.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.boot.stdin.take());
        let _ = self.boot.wait();
    }
}

/// Writes an executable by another process. If a thread of ours forked while it was open for
/// writing, executing the file would fail.
fn install(release: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(release.join("handoffd")).stdin(Stdio::piped());
    let mut install = install.spawn().expect("install, of coreutils, is needed");
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}
