//! The errors that the kernel may return, for each system call of a handoff.

/// Returns the errors that the kernel may return for a call, by its manual page. The list is empty
/// for calls that cannot fail. It is also empty where the runtime or the standard library panics or
/// aborts at an error. Such a death is a kill, which other tests cover. Examples are `write`, by
/// which the runtime wakes itself, and `mmap`.
pub(crate) fn errors(call: &str) -> &'static [&'static str] {
    match call {
        "socket" | "socketpair" | "epoll_create1" | "eventfd2" | "dup3" | "memfd_create"
        | "pidfd_open" | "pipe2" => &["EMFILE", "ENFILE", "ENOMEM"],
        "accept4" => &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EINTR", "ECONNABORTED"],
        // Not EAGAIN: the runtime would wait for a wake-up that the kernel does not send.
        "sendto" | "sendmsg" => &["ENOBUFS", "ENOMEM", "EINTR"],
        "recvfrom" | "recvmsg" => &["ENOMEM", "EINTR"],
        "openat" => &["EMFILE", "ENFILE", "ENOMEM", "EINTR", "EIO"],
        "read" => &["EIO", "EINTR"],
        "epoll_ctl" => &["ENOMEM", "ENOSPC"],
        "clone" | "clone3" => &["EAGAIN", "ENOMEM"],
        "wait4" | "epoll_wait" | "poll" | "close" => &["EINTR"],
        // Not unlink: a draft of the pid file would then stay until a generation starts after the
        // process was reaped. This test reaps at its end. tests/pid_file.rs covers it.
        "rename" | "linkat" | "renameat2" | "ftruncate" => &["EIO", "ENOSPC", "EPERM"],
        "fcntl" => &["EMFILE"],
        "setsockopt" | "getsockopt" | "bind" | "listen" | "connect" | "getsockname" => {
            &["ENOBUFS", "ENOMEM"]
        }
        _ => &[],
    }
}
