//! In-memory files (see memfd_create(2)). This process uses them to send data that is too long for
//! one packet.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The flag `MFD_NOEXEC_SEAL`, which prevents the file from ever being executed. It exists since
/// Linux 6.3. Some systems refuse in-memory files without this flag.
const NEVER_EXECUTED: libc::c_uint = 8;

/// Creates an in-memory file that holds `bytes`.
///
/// # Errors
/// Fails when the kernel is out of memory or this process has no free descriptor.
pub(crate) fn written(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(NEVER_EXECUTED);
    let file = match memfd_create(c"handoffd", flags) {
        // Kernels before 6.3 do not know `MFD_NOEXEC_SEAL`, so create the file without it.
        Err(Errno::EINVAL) => memfd_create(c"handoffd", MFdFlags::MFD_CLOEXEC),
        created => created,
    };
    let mut file = File::from(file?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Reads a whole file from its start, regardless of the current file offset.
///
/// # Errors
/// `InvalidInput` when `file` is not a regular file or is larger than `most` bytes.
pub(crate) fn read(file: OwnedFd, most: u64) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let status = file.metadata()?;
    if !status.is_file() || status.len() > most {
        let why = format!("expected a regular file of at most {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut bytes = vec![0; usize::try_from(status.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
