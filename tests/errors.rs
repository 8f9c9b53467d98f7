//! Fault injection: any system call of a handoff may fail, and either side may be killed. This is a
//! sample. `cargo test --test errors` runs all of it.

#[path = "errors/embedded.rs"]
mod embedded;
#[path = "errors/kernel_errors.rs"]
mod kernel_errors;
#[path = "errors/matrix.rs"]
mod matrix;
#[path = "errors/storm.rs"]
mod storm;

use matrix::Extent;
use storm::OnHandoff;

#[test]
fn any_call_of_the_old_generation_may_fail() {
    matrix::old_generation(Extent::Sample);
}

#[test]
fn any_call_of_the_new_generation_may_fail() {
    matrix::new_generation(Extent::Sample);
}

#[test]
fn any_call_between_the_forks_may_fail() {
    matrix::between_the_forks(Extent::Sample);
}

#[test]
fn any_call_of_the_init_may_fail() {
    matrix::init(Extent::Sample);
}

#[test]
fn any_call_of_an_old_embedded_server_may_fail() {
    embedded::old_generation(Extent::Sample);
}

#[test]
fn any_call_of_a_new_embedded_server_may_fail() {
    embedded::new_generation(Extent::Sample);
}

#[test]
fn handoffs_with_faults_lose_no_client() {
    storm::run(OnHandoff::Drain, 150, 3);
}

#[test]
fn handoffs_with_carry_and_faults_lose_no_client() {
    storm::run(OnHandoff::Carry, 100, 4);
}
