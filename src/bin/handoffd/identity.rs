//! The identity of the running program and its configuration. An operator uses this identity to
//! tell two generations apart.

use std::fmt::Write as _;
use std::fs::{self, File};

use handoffd::status::Identity;
use object::{Object, ReadCache};
use sha2::{Digest, Sha256};

/// Returns the identity of this process, derived from its binary, its command line and the contents
/// of its configuration file. `file` is empty if the process has no configuration file.
pub(crate) fn identity(file: &[u8]) -> Identity {
    let mut digest = Sha256::new();
    for argument in std::env::args_os().skip(1) {
        digest.update(argument.as_encoded_bytes());
        digest.update([0]);
    }
    digest.update(file);
    let mut identity = Identity::default();
    identity.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    identity.build = build_id();
    identity.configuration = Some(hexadecimal(&digest.finalize()));
    identity.control_group = control_group();
    identity
}

/// Returns the control group of this process, by which systemd identifies its unit (see
/// cgroups(7)). On a machine with several control group hierarchies, uses systemd's hierarchy.
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

/// Returns the build id that the linker has written into the running program. The id is correct
/// even if another file is now at the program's path.
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
