//! The whole error matrix: every system call of a handoff fails once with every error that it can
//! return.
//!
//! This takes half an hour: `cargo test --test errors`. The other tests run a sample of it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed"
)]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks at one of them")]

mod embedded;
mod kernel_errors;
mod matrix;
mod storm;
#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests use more of it")]
mod support;

use matrix::Extent;
use storm::OnHandoff;

#[test]
fn any_call_of_the_old_generation_may_fail() {
    matrix::old_generation(Extent::Whole);
}

#[test]
fn any_call_of_the_new_generation_may_fail() {
    matrix::new_generation(Extent::Whole);
}

#[test]
fn any_call_between_the_forks_may_fail() {
    matrix::between_the_forks(Extent::Whole);
}

#[test]
fn any_call_of_the_init_may_fail() {
    matrix::init(Extent::Whole);
}

#[test]
fn any_call_of_an_old_embedded_server_may_fail() {
    embedded::old_generation(Extent::Whole);
}

#[test]
fn any_call_of_a_new_embedded_server_may_fail() {
    embedded::new_generation(Extent::Whole);
}

#[test]
fn ten_thousand_handoffs_with_faults_lose_no_client() {
    storm::run(OnHandoff::Drain, 10_000, 1);
}

#[test]
fn a_thousand_carrying_handoffs_with_faults_lose_no_client() {
    storm::run(OnHandoff::Carry, 1_000, 2);
}
