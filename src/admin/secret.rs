//! Fresh secrets from the system's own randomness, in letters that survive being typed.

use super::{FAILURE, Refusal, refusal};
use crate::credential;

/// Five bits each; no letter that a shell, a URL or a reader could misread.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// So many letters that they hold `bits` random bits, a multiple of five.
pub fn fresh(bits: usize) -> Result<String, Refusal> {
    let mut bytes = vec![0; bits / 5];
    fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
}

/// A device's token. Nobody types it: it stands in a URL.
pub fn token() -> Result<String, Refusal> {
    let mut bytes = [0; credential::TOKEN];
    fill(&mut bytes)?;
    Ok(credential::token(&bytes))
}

fn fill(bytes: &mut [u8]) -> Result<(), Refusal> {
    getrandom::fill(bytes)
        .map_err(|error| refusal(FAILURE, format!("the system gave no randomness: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_is_different_and_so_is_every_secret() {
        let mut letters = LETTERS.to_vec();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), 32);
        let (one, other) = (fresh(160).expect("randomness"), fresh(160).expect("randomness"));
        assert_eq!((one.len(), other.len()), (32, 32));
        assert_ne!(one, other);
        assert_ne!(token().expect("randomness"), token().expect("randomness"));
    }
}
