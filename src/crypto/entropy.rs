//! The randomness of a running service.

use crate::domain::Entropy;

/// Randomness from the operating system, through the cryptographic library's
/// generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        if aws_lc_rs::rand::fill(buffer).is_err() {
            tracing::error!("the operating system gives no randomness");
            // Whatever went on would hand out guessable secrets.
            std::process::abort();
        }
    }
}
