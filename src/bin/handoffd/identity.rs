//! The identity of this program and its configuration, so that an operator can tell two generations
//! apart.

use std::fmt::Write as _;
use std::fs::{self, File};

use handoffd::Identity;
use object::{Object, ReadCache};
use sha2::{Digest, Sha256};

/// Returns the identity of this process. The configuration is its command line and the contents of
/// the configuration file, empty if there is none.
pub(crate) fn identity(file: &[u8]) -> Identity {
    let mut digest = Sha256::new();
    for argument in std::env::args_os().skip(1) {
        digest.update(argument.as_encoded_bytes());
        digest.update([0]);
    }
    digest.update(file);
    Identity {
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        build: build_id(),
        configuration: Some(hexadecimal(&digest.finalize())),
        control_group: control_group(),
    }
}

/// Returns the control group by which systemd knows this process, cgroups(7). Prefers systemd's own
/// hierarchy to the unified one.
fn control_group() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path =
        |prefix: &str| groups.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
    let of_systemd = groups
        .lines()
        .find_map(|line| line.split_once(":name=systemd:"))
        .map(|(_, path)| path.to_owned());
    of_systemd.or_else(|| path("0::"))
}

/// Returns the linker's build id of the running program, even if another file is at its path by
/// now.
fn build_id() -> Option<String> {
    let file = ReadCache::new(File::open("/proc/self/exe").ok()?);
    let object = object::File::parse(&file).ok()?;
    object.build_id().ok().flatten().map(hexadecimal)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
