//! What a hash costs with each kernel, beside the argon2 crate as it is usually
//! called and in memory that it is lent, turn by turn, in CPU time.
//!
//! `cargo bench -p countersign-argon2id`; with `-- MEMORY_KIB ITERATIONS` for other
//! parameters than the service's own.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for a developer's terminal"
)]

use std::time::Duration;

use argon2::{Algorithm, Argon2, Block, Version};
use countersign_argon2id::{Input, Kernel, Memory, OUTPUT, Params, hash_by};
use rustix::time::{ClockId, clock_gettime};

const PASSWORD: &[u8] = b"correct horse battery staple";
const SALT: &[u8] = &[7; 16];
const ROUNDS: usize = 31;

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse().ok());
    let memory = numbers.next().unwrap_or(19456);
    let passes = numbers.next().unwrap_or(2);
    let params = Params::new(memory, passes, 1).unwrap();
    println!("m={memory} t={passes} p=1, {ROUNDS} rounds");

    let theirs = argon2::Params::new(memory, passes, 1, Some(OUTPUT)).unwrap();
    let theirs = Argon2::new(Algorithm::Argon2id, Version::V0x13, theirs);
    let mut lent = vec![Block::new(); params.blocks()];
    let mut output = [0; OUTPUT];
    let mut ours = Memory::reserve(&params).unwrap();
    let input = Input {
        password: PASSWORD,
        salt: SALT,
        ..Input::default()
    };

    let kernels: Vec<_> = Kernel::all().collect();
    let mut names = vec!["argon2 crate".to_owned(), "  with memory lent".to_owned()];
    names.extend(kernels.iter().map(Kernel::to_string));
    let mut times = vec![Vec::new(); names.len()];
    // The first round only takes memory.
    for round in 0..=ROUNDS {
        let mut taken = vec![
            cpu_of(|| {
                theirs
                    .hash_password_into(PASSWORD, SALT, &mut output)
                    .unwrap();
            }),
            cpu_of(|| {
                theirs
                    .hash_password_into_with_memory(PASSWORD, SALT, &mut output, &mut lent[..])
                    .unwrap();
            }),
        ];
        for kernel in &kernels {
            taken.push(cpu_of(|| {
                assert_eq!(hash_by(*kernel, &params, &input, &mut ours), Ok(output));
            }));
        }
        if round > 0 {
            for (times, time) in times.iter_mut().zip(taken) {
                times.push(time);
            }
        }
    }
    let usual = median(times[0].clone());
    for (name, times) in names.iter().zip(times) {
        let ratios = times.iter().map(|time| usual / time).collect();
        let milliseconds = median(times) * 1000.0;
        let ratio = median(ratios);
        println!("{name:20} {milliseconds:7.2} ms  {ratio:5.2} times as many");
    }
}

fn cpu_of(act: impl FnOnce()) -> f64 {
    let before = cpu();
    act();
    cpu().saturating_sub(before).as_secs_f64()
}

fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
