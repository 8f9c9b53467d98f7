//! This module holds the entry points of the fuzz targets in `fuzz/`.
//!
//! Each function gives bytes from outside to a parser of ours. It panics when a property of the
//! parser does not hold, and returns whether the parser understood the bytes.

use crate::notify::{MainProcess, Notifier};

/// Reads a message of another generation. What is understood is written and read again without a
/// change.
#[must_use]
pub fn message(packet: &[u8]) -> bool {
    crate::handoff::fuzz::message(packet)
}

/// Reads what a process is born with: the variables of its environment as in `/proc/PID/environ`,
/// and after an empty one the welcome of its predecessor. What it passes on to its own successor
/// says the same.
#[must_use]
pub fn birth(bytes: &[u8]) -> bool {
    let program = crate::handoff::fuzz::birth(bytes);
    program.is_some_and(|program| Notifier::new(program.notify_socket(), MainProcess::Head).is_ok())
}

/// Reads the packet of a carried connection, and the parcel of a service in it. What is taken up is
/// given up again without a change.
#[must_use]
pub fn carry(packet: &[u8]) -> bool {
    crate::carry::fuzz::connection(packet).is_some_and(crate::service::fuzz::take_up)
}

/// Reads a successor's answer to a carried connection.
#[must_use]
pub fn carry_answer(packet: &[u8]) -> bool {
    crate::carry::fuzz::answer(packet)
}

/// Reads what a client says on the control socket. It gets a reply, whatever it says.
#[must_use]
pub fn control_request(bytes: &[u8]) -> bool {
    crate::control::fuzz::request(bytes)
}

/// Reads what a daemon says on the control socket. A line that cannot be read ends in an error of
/// one line.
#[must_use]
pub fn control_reply(bytes: &[u8]) -> bool {
    crate::control::fuzz::replies(bytes)
}

/// Reads the name of a socket that comes from the service manager's store.
#[must_use]
pub fn stored_name(bytes: &[u8]) -> bool {
    crate::net::fuzz_stored_name(bytes)
}

/// Reads what a client begins with as a PROXY header. What the header says does not depend on what
/// follows it, and a part of it is never taken for the whole.
#[must_use]
pub fn proxy_header(bytes: &[u8]) -> bool {
    crate::service::fuzz::proxy_header(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    type Target = fn(&[u8]) -> bool;
    /// Files, each with its name.
    type Seeds = Vec<(String, Vec<u8>)>;

    /// The targets, each with the files that its encoder writes. Those of the configuration file
    /// are in `tests/config_text.rs`.
    fn targets() -> [(&'static str, Target, Seeds); 8] {
        [
            ("message", message, crate::handoff::fuzz::messages()),
            ("birth", birth, crate::handoff::fuzz::births()),
            ("carry", carry, carried()),
            ("carry_answer", carry_answer, crate::carry::fuzz::answers()),
            ("control_request", control_request, crate::control::fuzz::requests()),
            ("control_reply", control_reply, crate::control::fuzz::conversations()),
            ("stored_name", stored_name, crate::net::stored_names()),
            ("proxy_header", proxy_header, Vec::new()),
        ]
    }

    /// A packet for each parcel of a service.
    fn carried() -> Seeds {
        let parcels = crate::service::fuzz::parcels().into_iter();
        parcels.map(|(name, parcel)| (name, crate::carry::fuzz::packet(&parcel))).collect()
    }

    fn folder(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    /// A file is understood unless its name begins with `not-`.
    #[test]
    fn every_file_of_the_corpus_is_read_as_its_name_says() {
        for (target, read, seeds) in targets() {
            let files: Vec<_> =
                fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(files.len() >= seeds.len().max(3), "the corpus of {target} is gone");
            for file in files {
                let is_wrong = file.file_name().unwrap().to_str().unwrap().starts_with("not-");
                assert_ne!(read(&fs::read(&file).unwrap()), is_wrong, "{}", file.display());
            }
        }
    }

    #[test]
    fn what_the_encoders_write_is_understood() {
        for (target, read, seeds) in targets() {
            seeds.iter().for_each(|(name, bytes)| assert!(read(bytes), "{target}: {name}"));
        }
    }

    #[test]
    #[ignore = "writes fuzz/corpus: cargo test --lib writes_the_corpus -- --ignored"]
    fn writes_the_corpus() {
        for (target, _, seeds) in targets() {
            fs::create_dir_all(folder(target)).unwrap();
            seeds
                .into_iter()
                .for_each(|(name, bytes)| fs::write(folder(target).join(name), bytes).unwrap());
        }
    }
}
