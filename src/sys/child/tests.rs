//! Tests that start real programs as children.

use super::*;

fn text(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// Starts `script` in a shell with a pipe as descriptor 5. Returns the text that the script
/// wrote to the pipe, and its exit status.
async fn run(script: &str, environment: &[CString], listen_pid: bool) -> (String, ExitStatus) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let child = start(&ChildProgram {
        program: &text("/bin/sh"),
        arguments: &["sh", "-c", script].map(text),
        environment,
        listen_pid,
        descriptors: &[(write.as_fd(), 5)],
        directory: Some(&text("/proc")),
        umask: Some(0o027),
        on_our_death: Signal::SIGTERM,
    })
    .unwrap();
    drop(write);
    let status = child.wait().await.unwrap();
    let mut said = String::new();
    File::from(read).read_to_string(&mut said).unwrap();
    (said, status)
}

#[tokio::test]
async fn a_program_gets_what_it_is_given() {
    let script = "echo $$ $LISTEN_PID $A $PWD >&5; umask >&5";
    let environment = ["A=b", "PATH=/usr/bin:/bin"].map(text);
    let (said, status) = run(script, &environment, true).await;
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words[0], words[1], "{said}");
    assert_eq!(&words[2..], ["b", "/proc", "0027"], "{said}");
    assert!(status.success());
}

#[tokio::test]
async fn a_program_gets_no_other_descriptor() {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let child = start(&ChildProgram {
        program: &text("/bin/ls"),
        arguments: &["ls", "/proc/self/fd"].map(text),
        environment: &[],
        listen_pid: false,
        descriptors: &[(write.as_fd(), 1)],
        directory: None,
        umask: None,
        on_our_death: Signal::SIGTERM,
    });
    drop(write);
    assert!(child.unwrap().wait().await.unwrap().success());
    let mut said = String::new();
    File::from(read).read_to_string(&mut said).unwrap();
    // Descriptor 3 is the directory that ls(1) itself has opened.
    assert_eq!(said, "0\n1\n2\n3\n");
}

#[tokio::test]
async fn a_program_starts_with_the_default_signals() {
    SigSet::all().thread_block().unwrap();
    let script = "grep -E 'Sig(Blk|Ign)' /proc/$$/status | cut -f 2 >&5; kill -TERM $$";
    let (said, status) = run(script, &[text("PATH=/usr/bin:/bin")], false).await;
    let none = "0000000000000000\n";
    assert_eq!(said, format!("{none}{none}"));
    assert_eq!(status.signal(), Some(15));
}

#[tokio::test]
async fn the_reason_of_a_failed_start_is_returned() {
    let nothing = text("/nonexistent/program");
    let failed = start(&ChildProgram {
        program: &nothing,
        arguments: &[text("x")],
        environment: &[],
        listen_pid: false,
        descriptors: &[],
        directory: None,
        umask: None,
        on_our_death: Signal::SIGTERM,
    });
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::ENOENT));
}
