//! The verifier by its public face: tokens in, verdicts out.

#[cfg(test)]
mod api_keys;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod cache;
#[cfg(test)]
mod catalogue;
#[cfg(test)]
mod claims;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod feed;
#[cfg(test)]
mod interoperation;
#[cfg(test)]
mod layer;
#[cfg(test)]
mod minting;
#[cfg(test)]
mod recheck;
#[cfg(test)]
mod state;
