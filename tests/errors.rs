//! Any system call of a handoff may fail: a sample of the matrix of errors. `cargo test --test errors` runs all of it.

#[path = "errors/matrix.rs"]
mod matrix;

use matrix::Extent;

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
