//! Whatever a proxy sends first is a header that names somebody or nobody, or is refused; what follows
//! it is never taken, and as many bytes as are asked for always lead on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sync_server::peer::proxy::{self, Step};

fuzz_target!(|bytes: &[u8]| {
    taken(bytes);
    // Most bytes are no header: behind a right beginning they get further.
    taken(&[&proxy::WORD[..], bytes].concat());
    taken(&[&proxy::SIGNATURE[..], bytes].concat());
});

fn taken(bytes: &[u8]) {
    let mut at = 0;
    loop {
        match proxy::read(&bytes[..at]) {
            Ok(Step::Whole(_)) => {
                assert!(proxy::is_begun(bytes) && at <= 16 + 16 * 1024);
                // Nothing that is shorter is whole.
                assert!((0..at).all(|less| !matches!(proxy::read(&bytes[..less]), Ok(Step::Whole(_)))));
                return;
            }
            Ok(Step::More(more)) => {
                assert!(more > 0);
                at += more;
                if at > bytes.len() {
                    return;
                }
            }
            Err(proxy::Malformed) => return,
        }
    }
}
