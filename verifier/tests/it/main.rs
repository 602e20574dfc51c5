//! The verifier by its public face: tokens in, verdicts out.

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod claims;
#[cfg(test)]
mod interoperation;
#[cfg(test)]
mod minting;
#[cfg(test)]
mod state;
