//! This module reads files with settings. Each reload of the daemon reads them again.
//!
//! A device, a pipe or a file of the kernel could block the reader or never end. The module refuses
//! such a file, and also a file that is too large to contain settings.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::statfs::{self, FsType, fstatfs};

/// The maximum size of a file with settings, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// The file systems whose contents the kernel generates on each read.
const KERNEL_FILES: [FsType; 4] =
    [statfs::PROC_SUPER_MAGIC, statfs::SYSFS_MAGIC, statfs::DEBUGFS_MAGIC, statfs::TRACEFS_MAGIC];

/// Reads a file with settings.
///
/// # Errors
/// Fails if the file cannot be read, is not a regular file, or is larger than 1 MiB.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let no_file =
        || io::Error::other("not a regular file: each reload must be able to read the file again");
    // Check the type of the file before opening it, because opening a device may have side
    // effects.
    if !fs::metadata(path)?.is_file() {
        return Err(no_file());
    }
    // Open with `O_NONBLOCK`, because the file may have been replaced with a pipe in the meantime.
    // Without this flag, opening a pipe would wait for a writer.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    // Refuse files whose contents the kernel generates. They look like regular files, but
    // reading some of them blocks until data arrives (see proc_kmsg(5)).
    let is_of_kernel =
        fstatfs(&file).is_ok_and(|system| KERNEL_FILES.contains(&system.filesystem_type()));
    if is_of_kernel || !file.metadata()?.is_file() {
        return Err(no_file());
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("the file is larger than 1 MiB"));
    }
    Ok(bytes)
}
