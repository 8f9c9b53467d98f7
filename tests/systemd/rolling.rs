//! Tests of the rolling playbook with real machines: Ansible on one, and three hosts with sshd,
//! connected by virtual cables.
//!
//! Each machine is its own lab, so processes and files that Ansible leaves behind disappear with
//! it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, json};

use crate::lab::{ADDRESS, Lab, PROGRAM};
use crate::shipped::script;
use crate::support::operator::Answered;
use crate::support::{Client, Event, REAL, Storm};
use crate::system::System;
use crate::traffic;

/// The hosts, in alphabetical order, which is the order in which Ansible visits them.
const HOSTS: [&str; 3] = ["first", "second", "third"];
/// The operator's checkout.
const CHECKOUT: &str = "/srv/handoffd";
/// The operator's other files.
const FOLDER: &str = "/opt/handoffd";

/// The hosts are updated one at a time.
pub(crate) fn a_good_release_rolls_over_all_hosts_unnoticed() {
    let fleet = Fleet::serving();
    let storms: Vec<Storm> = fleet.hosts.iter().map(|host| traffic::storm(host, 1, 1)).collect();
    fleet.build("b");
    fleet.roll("b", &[]).well();
    for (storm, host) in storms.into_iter().zip(&fleet.hosts) {
        let tally = storm.end();
        println!(
            "{} short, {} persistent, {} crossed",
            tally.short, tally.persistent, tally.crossed
        );
        assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, host.journal_text());
        assert!(tally.short > 0 && tally.persistent > 0);
    }
    let mut before = 0;
    for host in &fleet.hosts {
        let seen = see(host);
        assert_eq!((seen.generation, &*seen.build, &*seen.link), (2, "b", "releases/b"));
        assert_eq!(seen.releases, ["a", "b"]);
        let (start, end) = (
            when(host, Event::HandoffStarted, "HANDOFFD_SUCCESSOR"),
            when(host, Event::GenerationServing, "HANDOFFD_GENERATION"),
        );
        assert!(
            before < start && start < end,
            "a host was updated before the previous host served: {before}, {start}, {end}"
        );
        before = end;
    }
    // Runs the playbook again after one host was set up from scratch.
    let [old @ .., new] = &fleet.hosts[..] else { unreachable!("there are three") };
    let were: Vec<Seen> = old.iter().map(see).collect();
    wipe(new);
    let again = fleet.roll("b", &[]).well();
    assert_eq!(again.matches("changed=0").count(), old.len(), "{again}");
    assert_eq!(old.iter().map(see).collect::<Vec<_>>(), were);
    let seen = see(new);
    assert_eq!((seen.generation, &*seen.build, &*seen.link), (1, "b", "releases/b"));
    assert_eq!(seen.releases, ["b"]);
    new.inside(|| Client::once(ADDRESS, b"are you there?").unwrap());
    assert_eq!(
        new.systemctl(&["is-enabled", "handoffd.service", "handoffd.socket"]).well(),
        "enabled\nenabled\n"
    );
}

/// The first host keeps serving the old release, and the other hosts are not touched.
pub(crate) fn a_bad_release_stops_at_the_first_host() {
    let fleet = Fleet::serving();
    let [first, others @ ..] = &fleet.hosts[..] else { unreachable!("there are three") };
    first.start_with("--log info");
    first.systemctl(&["restart", "handoffd.service"]).well();
    let untouched: Vec<Seen> = others.iter().map(see).collect();
    let was = see(first);
    let storm = traffic::storm(first, 1, 1);

    // This release passes its check and then exits instead of serving.
    fleet.write("ends", "[ \"$1\" = check ] || exit 7");
    fleet.roll("ends", &[]).says("the new process ended before it was ready");
    let is = see(first);
    assert_eq!((is.generation, is.pid, &is.link), (1, was.pid, &was.link));
    assert_eq!(is.releases, ["a", "ends"]);
    // This release rejects the arguments in its check, so it never becomes current.
    fleet.write("refuses", "[ \"$1\" != check ] || echo \"I will not ${*:2}\" >&2; exit 78");
    fleet.roll("refuses", &[]).says("I will not --log info");
    assert_eq!(
        see(first),
        Seen { releases: ["a", "ends", "refuses"].map(str::to_owned).to_vec(), ..is }
    );
    // This is a different program with the name of an existing release.
    fleet.write("a", "");
    fleet.roll("a", &[]).says("A release never changes");
    // This release serves wrong replies, so the previous release takes over again.
    fleet.build("c");
    fleet
        .roll("c", &["-e", "probe='echo 42 is the wrong answer; false'"])
        .says("42 is the wrong answer");
    let is = see(first);
    assert_eq!((is.generation, &*is.build, &is.link), (3, "a", &was.link));
    // The playbook also stops at a host that cannot be reached.
    fleet.roll("c", &["-e", "ansible_port=9"]).says("UNREACHABLE");
    assert_eq!(others.iter().map(see).collect::<Vec<_>>(), untouched);

    // Simulates a run that was interrupted right after it had switched the link. The next run
    // repeats the step and removes what is left.
    let current = first.path(format!("{FOLDER}/current"));
    fs::remove_file(&current).unwrap();
    symlink("releases/c", current).unwrap();
    fleet.roll("c", &["-e", "keep=1", "--limit", "first"]).well();
    let is = see(first);
    assert_eq!((is.generation, &*is.build, &*is.link), (4, "c", "releases/c"));
    assert_eq!(is.releases, ["a", "c"]);
    let tally = storm.end();
    assert!(tally.losses.is_empty(), "{:?}\n{}", tally.losses, first.journal_text());
}

/// The hosts and the operator's machine.
struct Fleet {
    operator: Lab,
    hosts: Vec<Lab>,
}

impl Fleet {
    fn new() -> Self {
        let ansible = ansible();
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
        let operator =
            Lab::bare(System::Host, &[(&ansible, &ansible), (checkout, Path::new(CHECKOUT))]);
        let key = make_key(&operator, &format!("{FOLDER}/key"));
        let mut known = String::new();
        let mut hosts = Vec::new();
        let mut addresses = Map::new();
        for (number, name) in HOSTS.into_iter().enumerate() {
            let host = Lab::bare(System::Host, &[]);
            let address = format!("10.0.{number}.2");
            operator.cable(
                (name, &format!("10.0.{number}.1/24")),
                &host,
                ("operator", &format!("{address}/24")),
            );
            known += &format!("{address} {}", start_sshd(&host, &key));
            addresses.insert(name.to_owned(), json!({ "ansible_host": address }));
            hosts.push(host);
        }
        let vars = json!({
            "ansible_user": "root",
            "ansible_pipelining": true,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": format!("{FOLDER}/key"),
            "ansible_ssh_common_args": format!("-F none -o UserKnownHostsFile={FOLDER}/known"),
        });
        let inventory = json!({ "handoffd": { "hosts": addresses, "vars": vars } }).to_string();
        // Ansible must not use this machine's configuration.
        let config = "[defaults]\ncallback_result_format = yaml\n".to_owned();
        for (name, text) in
            [("known", known), ("inventory.yml", inventory), ("ansible.cfg", config)]
        {
            fs::write(operator.path(format!("{FOLDER}/{name}")), text).unwrap();
        }
        Self { operator, hosts }
    }

    /// Creates a fleet on which release `a` was installed by hand and serves.
    fn serving() -> Self {
        let fleet = Self::new();
        fleet.build("a");
        for host in &fleet.hosts {
            let release = host.path(format!("{FOLDER}/releases/a/handoffd"));
            // Written by another process: see `Lab::deploy_script`.
            let installed = Command::new("install")
                .arg("-D")
                .arg(fleet.binary("a"))
                .arg(release)
                .status()
                .unwrap();
            assert!(installed.success());
            symlink("releases/a", host.path(format!("{FOLDER}/current"))).unwrap();
            symlink(format!("{FOLDER}/current/handoffd"), host.path(PROGRAM)).unwrap();
            host.install_units();
            host.systemctl(&["enable", "--quiet", "--now", "handoffd.service"]).well();
        }
        fleet
    }

    /// Builds a release on the operator's machine. Its name is a letter from `a` to `f`, and every
    /// digit of its build id is that letter.
    fn build(&self, release: &str) {
        let note = self.operator.path(format!("{FOLDER}/note"));
        let digits = [u8::from_str_radix(&release.repeat(2), 16).unwrap(); 20];
        fs::write(&note, [&b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"[..], &digits].concat()).unwrap();
        let mut objcopy = Command::new("objcopy");
        objcopy
            .arg("--strip-all")
            .arg(format!("--update-section=.note.gnu.build-id={}", note.display()));
        let built = objcopy
            .arg(REAL)
            .arg(self.binary(release))
            .status()
            .expect("objcopy, of binutils, is needed");
        assert!(built.success());
    }

    /// Creates a release with a shell script instead of the daemon.
    fn write(&self, release: &str, text: &str) {
        fs::write(self.binary(release), format!("#!/bin/bash\n{text}\n")).unwrap();
    }

    fn binary(&self, release: &str) -> PathBuf {
        self.operator.path(format!("{FOLDER}/handoffd-{release}"))
    }

    /// Runs the playbook.
    fn roll(&self, release: &str, more: &[&str]) -> Answered {
        let (config, inventory) =
            (format!("ANSIBLE_CONFIG={FOLDER}/ansible.cfg"), format!("{FOLDER}/inventory.yml"));
        let ansible = ansible().join("bin/ansible-playbook");
        let playbook = format!("{CHECKOUT}/docs/deploy/rolling.yml");
        let (name, binary) =
            (format!("release={release}"), format!("binary={FOLDER}/handoffd-{release}"));
        let words = [
            "env",
            &config,
            ansible.to_str().unwrap(),
            "-i",
            &inventory,
            &playbook,
            "-e",
            &name,
            "-e",
            &binary,
        ];
        let run = self.operator.start(&[&words, more].concat()).wait();
        println!("{}{}", run.out, run.err);
        run
    }
}

impl Answered {
    /// Asserts that the run failed at the first host, with these words.
    fn says(&self, words: &str) {
        let [first, others @ ..] = HOSTS;
        assert_ne!(self.code, 0, "{self:?}");
        assert!(self.out.contains(words), "{words:?} is missing in the output: {self:?}");
        assert!(self.out.contains(&format!("[{first}]")));
        for other in others {
            assert!(!self.out.contains(other), "{other} should not have been reached: {self:?}");
        }
    }
}

/// The state of a host.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    generation: u64,
    pid: u32,
    /// The digit of which the build id consists.
    build: String,
    link: String,
    releases: Vec<String>,
}

fn see(host: &Lab) -> Seen {
    let status = host.status();
    let serving = &status["generations"][0];
    let build = serving["build"].as_str().unwrap();
    let releases = fs::read_dir(host.path(format!("{FOLDER}/releases"))).unwrap();
    let mut releases: Vec<_> =
        releases.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    releases.sort();
    let seen = Seen {
        generation: status["serving"].as_u64().unwrap(),
        pid: host.main_pid(),
        build: build[..1].to_owned(),
        link: fs::read_link(host.path(format!("{FOLDER}/current")))
            .unwrap()
            .into_os_string()
            .into_string()
            .unwrap(),
        releases,
    };
    assert_eq!((&serving["pid"], build), (&json!(seen.pid), &*seen.build.repeat(40)), "{status}");
    seen
}

/// Removes the units and the releases from a host.
fn wipe(host: &Lab) {
    let units = ["handoffd.socket", "handoffd.service"];
    host.systemctl(&[&["disable", "--quiet", "--now"], &units[..]].concat()).well();
    for unit in units {
        fs::remove_file(host.path(format!("/etc/systemd/system/{unit}"))).unwrap();
    }
    fs::remove_file(host.path(PROGRAM)).unwrap();
    fs::remove_file(host.path(format!("{FOLDER}/current"))).unwrap();
    fs::remove_dir_all(host.path(format!("{FOLDER}/releases"))).unwrap();
    host.systemctl(&["daemon-reload"]).well();
}

/// Returns when the daemon on a host logged this event about generation 2, which the field
/// `ordinal` names. The time is in microseconds, by one clock for all hosts.
fn when(host: &Lab, event: Event, ordinal: &str) -> u64 {
    let journal = host.journal();
    let record =
        journal.iter().find(|record| record["EVENT"] == event.id() && record[ordinal] == "2");
    let record = record.unwrap_or_else(|| panic!("{event:?} is not in:\n{}", host.journal_text()));
    record["__REALTIME_TIMESTAMP"].as_str().unwrap().parse().unwrap()
}

/// Returns the path of Ansible.
fn ansible() -> PathBuf {
    let made = Command::new(script("ansible")).stderr(Stdio::inherit()).output().unwrap();
    assert!(made.status.success(), "cannot install Ansible");
    PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())
}

/// Creates a key, and returns its public half.
fn make_key(lab: &Lab, path: &str) -> String {
    lab.run(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]).well();
    fs::read_to_string(lab.path(format!("{path}.pub"))).unwrap()
}

/// Starts sshd for the owner of the authorised key, and returns the host's public key.
fn start_sshd(host: &Lab, authorised: &str) -> String {
    let key = make_key(host, "/etc/ssh/host");
    let config = "HostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/authorised\nAuthenticationMethods publickey\n\
                  PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n";
    fs::write(host.path("/etc/ssh/authorised"), authorised).unwrap();
    fs::write(host.path("/etc/ssh/sshd_config"), config).unwrap();
    // The unit of Debian's package openssh-server.
    host.systemctl(&["start", "ssh.service"]).well();
    key
}
