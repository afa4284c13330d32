//! The credential of a device: a name and a token, as `Authorization: Basic` brings them.
//!
//! Pure: knows no clock, no randomness, no database and no HTTP beyond that one header's value. A
//! token is known by its hash from the moment it is read, so that none can slip into a log.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest;
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

/// Random bytes of a token.
pub const TOKEN: usize = 32;

/// Characters of a device's name at most.
pub const LONGEST_NAME: usize = 64;

/// Bytes of a header's value at most that may be a credential of ours: a few times what one needs.
const LONGEST_VALUE: usize = 512;

/// The scheme, which is written in any case.
const SCHEME: &[u8] = b"basic";

/// The SHA-256 of a token: all that the server keeps of it.
///
/// There is no `==`: see [`is_valid`].
#[derive(Clone, Copy)]
pub struct Hash([u8; digest::SHA256_OUTPUT_LEN]);

impl Hash {
    /// Of a token as it is written.
    pub fn of(token: &str) -> Hash {
        Hash::of_bytes(token.as_bytes())
    }

    /// As a database kept it; `None` where these bytes are no hash.
    pub fn from_bytes(bytes: &[u8]) -> Option<Hash> {
        bytes.try_into().ok().map(Hash)
    }

    /// The bytes for a database.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn of_bytes(bytes: &[u8]) -> Hash {
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
        Hash(hash)
    }
}

/// Without the bytes: whoever reads a log need not learn which tokens are the same.
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash")
    }
}

/// What a request brings to show that it comes from a device.
#[derive(Clone, Debug)]
pub struct Credential {
    name: String,
    hash: Hash,
}

impl Credential {
    /// Reads the value of an `Authorization` header; `None` where it is no credential that a device of
    /// ours could have.
    pub fn parse(value: &[u8]) -> Option<Credential> {
        if value.len() > LONGEST_VALUE {
            return None;
        }
        let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
        if !scheme.eq_ignore_ascii_case(SCHEME) || !rest.starts_with(b" ") {
            return None;
        }
        let pair = STANDARD.decode(rest.trim_ascii()).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        let name = str::from_utf8(&pair[..colon]).ok().filter(|name| is_name(name))?;
        Some(Credential { name: name.to_owned(), hash: Hash::of_bytes(&pair[colon + 1..]) })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether a device may be called so: what needs no encoding in a URL, a shell or a header.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(plain)
}

/// The token that these random bytes make, in letters that need no encoding in a URL.
pub fn token(random: &[u8; TOKEN]) -> String {
    URL_SAFE_NO_PAD.encode(random)
}

/// Whether what a request brings is what is stored for the device that it names.
///
/// Takes as long whether one of them is missing, they differ, or they are the same.
pub fn is_valid(stored: Option<&Hash>, given: Option<&Credential>) -> bool {
    let none = [0; digest::SHA256_OUTPUT_LEN];
    let (kept, brought) = (stored.map_or(none, |hash| hash.0), given.map_or(none, |given| given.hash.0));
    let both = Choice::from(u8::from(stored.is_some())) & Choice::from(u8::from(given.is_some()));
    (kept.ct_eq(&brought) & both).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Credential> {
        Credential::parse(format!("Basic {}", STANDARD.encode(text)).as_bytes())
    }

    #[test]
    fn a_header_of_a_name_and_a_token_is_a_credential() {
        // What curl and both generations of clients send for laptop:secret.
        for value in ["Basic bGFwdG9wOnNlY3JldA==", "bAsIc  bGFwdG9wOnNlY3JldA== "] {
            let credential = Credential::parse(value.as_bytes()).expect(value);
            assert_eq!(credential.name(), "laptop");
            assert!(is_valid(Some(&Hash::of("secret")), Some(&credential)), "{value}");
        }
        let colons = parse("a.b_c-D9:to:ken").expect("only the first colon divides");
        assert!(is_valid(Some(&Hash::of("to:ken")), Some(&colons)));
    }

    #[test]
    fn anything_else_is_none() {
        for value in
            ["", "Basic", "Basic ", "Basicx", "Bearer bGFwdG9wOnNlY3JldA==", "Basic bGFwdG9w", "Basic @@@"]
        {
            assert!(Credential::parse(value.as_bytes()).is_none(), "{value}");
        }
        assert!(Credential::parse(b"Basic \xff\xff").is_none());
        for pair in ["laptop", ":secret", "two words:secret", "l\u{e4}ptop:secret", "a/b:secret", "a%20b:x"] {
            assert!(parse(pair).is_none(), "{pair}");
        }
        assert!(parse(&format!("{}:x", "n".repeat(LONGEST_NAME))).is_some());
        assert!(parse(&format!("{}:x", "n".repeat(LONGEST_NAME + 1))).is_none());
        assert!(parse(&format!("laptop:{}", "x".repeat(LONGEST_VALUE))).is_none());
    }

    #[test]
    fn only_the_stored_token_is_valid_and_none_matches_none() {
        let (stored, other) = (Hash::of("secret"), Hash::of("Secret"));
        let given = parse("laptop:secret").expect("a credential");
        assert!(is_valid(Some(&stored), Some(&given)));
        assert!(!is_valid(Some(&other), Some(&given)));
        assert!(!is_valid(None, Some(&given)));
        assert!(!is_valid(Some(&stored), None));
        assert!(!is_valid(None, None));
        let zeros = Hash::from_bytes(&[0; 32]).expect("as long as a hash");
        assert!(!is_valid(Some(&zeros), None), "no credential counts as one of zeros");
    }

    #[test]
    fn hashes_are_sha_256_and_survive_being_kept() {
        let hash = Hash::of("abc");
        assert_eq!(hash.bytes()[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(Hash::from_bytes(hash.bytes()).expect("its own bytes").bytes(), hash.bytes());
        assert!(Hash::from_bytes(&hash.bytes()[1..]).is_none());
    }

    #[test]
    fn tokens_hold_256_bits_and_need_no_encoding_in_a_url() {
        let token = token(&[0xff; TOKEN]);
        assert_eq!(token.len(), 43);
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{token}");
    }

    #[test]
    fn nothing_of_a_token_can_be_printed() {
        let shown = format!("{:?}", parse("laptop:secret").expect("a credential"));
        assert_eq!(shown, "Credential { name: \"laptop\", hash: Hash }");
    }
}
