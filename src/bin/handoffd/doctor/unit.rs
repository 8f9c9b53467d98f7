//! Reads what systemd knows of a unit, by systemctl(1): the one interface that all versions have in one form.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use handoffd::Error;

/// A service, and the sockets that start it.
#[derive(Debug, Default)]
pub(super) struct Unit {
    /// The version of systemd.
    pub(super) systemd: u32,
    /// The service's properties, as `systemctl show` prints them.
    pub(super) properties: BTreeMap<String, String>,
    /// Its socket units, each with its properties.
    pub(super) sockets: Vec<(String, BTreeMap<String, String>)>,
}

impl Unit {
    /// Asks systemd.
    ///
    /// # Errors
    /// When there is none, or no such unit.
    pub(super) fn read(name: &str) -> Result<Self, Error> {
        let version = systemctl(&["--version"])?;
        let systemd =
            version.split_whitespace().nth(1).and_then(|word| word.split(['.', '~', '-']).next()?.parse().ok());
        let systemd = systemd.ok_or_else(|| unreadable(format!("systemctl --version says {version:?}")))?;
        let properties = show(name)?;
        if properties.get("LoadState").map(String::as_str) != Some("loaded") {
            return Err(unreadable(format!("systemd has no unit {name}")));
        }
        let triggers = properties.get("TriggeredBy").cloned().unwrap_or_default();
        let sockets = triggers.split_whitespace().filter(|unit| unit.ends_with(".socket"));
        let sockets = sockets.map(|socket| Ok((socket.to_owned(), show(socket)?))).collect::<Result<_, Error>>()?;
        Ok(Self { systemd, properties, sockets })
    }

    /// What a property is; empty when this systemd does not know it.
    pub(super) fn get(&self, property: &str) -> &str {
        self.properties.get(property).map_or("", String::as_str)
    }

    /// Whether a property is `yes`.
    pub(super) fn is_yes(&self, property: &str) -> bool {
        self.get(property) == "yes"
    }

    /// What a property allows: no bound for `infinity`, and for what this systemd does not know.
    pub(super) fn time(&self, property: &str) -> Option<Duration> {
        humantime::parse_duration(self.get(property)).ok()
    }
}

/// The unit that a process runs in, by its control group.
pub(super) fn of_process(pid: Option<u32>) -> Result<String, Error> {
    let pid = pid.ok_or_else(|| unreadable("the serving process has not said who it is".to_owned()))?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .map_err(|source| Error::System { doing: "read the control group of the serving process", source })?;
    let of_unit = |group: &str| group.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned);
    let unit = groups.lines().find_map(|line| of_unit(line.rsplit(':').next()?));
    unit.ok_or_else(|| unreadable(format!("process {pid} runs in no service of systemd")))
}

fn show(unit: &str) -> Result<BTreeMap<String, String>, Error> {
    let text = systemctl(&["show", "--no-pager", "--all", "--", unit])?;
    let mut properties = BTreeMap::<String, String>::new();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        // A setting with several commands is shown as several lines.
        properties
            .entry(key.to_owned())
            .and_modify(|before| *before += &format!("\n{value}"))
            .or_insert(value.to_owned());
    }
    Ok(properties)
}

fn systemctl(words: &[&str]) -> Result<String, Error> {
    let ran = Command::new("systemctl").args(words).output();
    let ran = ran.map_err(|source| Error::System { doing: "run systemctl", source })?;
    if !ran.status.success() {
        return Err(unreadable(String::from_utf8_lossy(&ran.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

fn unreadable(why: String) -> Error {
    Error::System { doing: "read the unit", source: std::io::Error::other(why) }
}
