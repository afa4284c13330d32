//! Encoded request bodies, decoded in bounded steps.
//!
//! Decoders pull from what was collected and give their input back piece by piece, so that a body
//! never lies in memory twice. Neither a step's output nor the input it may look at is unbounded: a
//! bomb is noticed 64 KiB after the limit, and no step holds up its thread for long.

use super::wire::Coding;
use brotli_decompressor::Decompressor;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind, Read};

/// The most that one step puts out.
pub const STEP: usize = 64 * 1024;

/// The most that one step looks at.
const STEP_INPUT: usize = 256 * 1024;

/// The size of a piece of collected input.
const PIECE: usize = 64 * 1024;

/// zstd's window is limited to 2 to this power: 8 MiB, what every decoder must support.
const ZSTD_WINDOW_LOG: u32 = 23;

/// The memory in bytes that a decoder of this coding needs beside its input and output.
pub fn overhead(coding: Coding) -> usize {
    match coding {
        Coding::Gzip | Coding::Deflate => 64 * 1024,
        Coding::Brotli => 17 * 1024 * 1024,
        Coding::Zstd => 9 * 1024 * 1024,
    }
}

/// An encoded body, whole or as far as it has arrived.
#[derive(Default)]
pub struct Encoded {
    pieces: VecDeque<Vec<u8>>,
    len: usize,
}

impl Encoded {
    /// Adds what arrived.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            if self.pieces.back().is_none_or(|piece| piece.len() == PIECE) {
                self.pieces.push_back(Vec::with_capacity(PIECE));
            }
            let Some(piece) = self.pieces.back_mut() else { return };
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - piece.len()));
            piece.extend_from_slice(now);
            bytes = later;
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// There may be more.
    More,
    /// The body is complete.
    End,
}

/// The encoded bytes are not what their coding says.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// Decodes one body.
pub struct Decoder {
    format: Format,
    buffer: Vec<u8>,
}

enum Format {
    Gzip(MultiGzDecoder<Feed>),
    Zlib(ZlibDecoder<Feed>),
    Deflate(DeflateDecoder<Feed>),
    Brotli(Box<Decompressor<Feed>>),
    Zstd(zstd::stream::read::Decoder<'static, Feed>),
}

impl Decoder {
    /// Of a whole encoded body.
    pub fn new(coding: Coding, encoded: Encoded) -> Result<Decoder, Broken> {
        let is_zlib = encoded.pieces.front().is_some_and(|piece| is_zlib(piece));
        let feed = Feed { encoded, at: 0, allowance: 0 };
        let format = match coding {
            Coding::Gzip => Format::Gzip(MultiGzDecoder::new(feed)),
            Coding::Deflate if is_zlib => Format::Zlib(ZlibDecoder::new(feed)),
            Coding::Deflate => Format::Deflate(DeflateDecoder::new(feed)),
            Coding::Brotli => Format::Brotli(Box::new(Decompressor::new(feed, 4096))),
            Coding::Zstd => Format::Zstd(zstd_decoder(feed).map_err(|_| Broken)?),
        };
        Ok(Decoder { format, buffer: vec![0; STEP] })
    }

    /// Appends at most [`STEP`] decoded bytes.
    pub fn step(&mut self, decoded: &mut Vec<u8>) -> Result<Step, Broken> {
        self.feed().allowance = STEP_INPUT;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = self.reader().read(&mut buffer);
        if let Ok(0) = result {
            // The brotli decoder tells only whoever asks again that something follows the end.
            result = self.reader().read(&mut buffer);
        }
        self.buffer = buffer;
        match result {
            Ok(0) if self.feed().is_empty() => Ok(Step::End),
            Ok(0) => Err(Broken),
            Ok(bytes) => {
                decoded.extend_from_slice(&self.buffer[..bytes]);
                Ok(Step::More)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Step::More),
            Err(_) => Err(Broken),
        }
    }

    /// How many encoded bytes are still held.
    pub fn left(&mut self) -> usize {
        let feed = self.feed();
        feed.encoded.len - feed.at
    }

    fn reader(&mut self) -> &mut dyn Read {
        match &mut self.format {
            Format::Gzip(decoder) => decoder,
            Format::Zlib(decoder) => decoder,
            Format::Deflate(decoder) => decoder,
            Format::Brotli(decoder) => decoder,
            Format::Zstd(decoder) => decoder,
        }
    }

    fn feed(&mut self) -> &mut Feed {
        match &mut self.format {
            Format::Gzip(decoder) => decoder.get_mut(),
            Format::Zlib(decoder) => decoder.get_mut(),
            Format::Deflate(decoder) => decoder.get_mut(),
            Format::Brotli(decoder) => decoder.get_mut(),
            Format::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

fn zstd_decoder(feed: Feed) -> io::Result<zstd::stream::read::Decoder<'static, Feed>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(feed)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// HTTP's "deflate" is the zlib format, but some send the bare one. A zlib header is the deflate
/// method and a checksum.
fn is_zlib(start: &[u8]) -> bool {
    match start {
        [first, second, ..] => first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31),
        _ => false,
    }
}

/// Gives out the collected pieces once, and only so many bytes a step: then it says that reading
/// would block.
struct Feed {
    encoded: Encoded,
    /// How much of the first piece has been read.
    at: usize,
    allowance: usize,
}

impl Feed {
    fn is_empty(&self) -> bool {
        self.encoded.len == self.at
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.is_empty() {
            return Ok(&[]);
        }
        if self.allowance == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let piece = self.encoded.pieces.front().map_or(&[][..], |piece| &piece[self.at..]);
        Ok(&piece[..piece.len().min(self.allowance)])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
        self.allowance = self.allowance.saturating_sub(bytes);
        if self.encoded.pieces.front().is_some_and(|piece| piece.len() == self.at) {
            self.encoded.pieces.pop_front();
            self.encoded.len -= self.at;
            self.at = 0;
        }
    }
}

impl Read for Feed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(buf)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use std::io::Write;

    fn decode(coding: Coding, encoded: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut whole = Encoded::default();
        whole.push(encoded);
        assert_eq!(whole.len(), encoded.len());
        let mut decoder = Decoder::new(coding, whole)?;
        let mut decoded = Vec::new();
        loop {
            let before = decoded.len();
            let step = decoder.step(&mut decoded)?;
            assert!(decoded.len() - before <= STEP);
            if step == Step::End {
                assert_eq!(decoder.left(), 0);
                return Ok(decoded);
            }
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn bare_deflate(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Brotli has blocks that hold their bytes as they are.
    fn brotli(bytes: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (n, block) in bytes.chunks(65_536).enumerate() {
            // From the lowest bit: the window (first block only), not the last block, four digits
            // of length, the length less one, uncompressed.
            let header = (block.len() as u32 - 1) << 3 | 1 << 19;
            let header = if n == 0 { header << 1 } else { header };
            encoded.extend(&header.to_le_bytes()[..3]);
            encoded.extend(block);
        }
        encoded.push(3);
        encoded
    }

    /// Nothing that compresses well, and longer than several steps.
    fn noise() -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..700_000).map(|_| next()).collect()
    }

    fn every_coding(bytes: &[u8]) -> [(Coding, Vec<u8>); 5] {
        [
            (Coding::Gzip, gzip(bytes)),
            (Coding::Deflate, zlib(bytes)),
            (Coding::Deflate, bare_deflate(bytes)),
            (Coding::Brotli, brotli(bytes)),
            (Coding::Zstd, zstd::encode_all(bytes, 1).unwrap()),
        ]
    }

    #[test]
    fn every_coding_round_trips_over_many_steps() {
        let plain = noise();
        for (coding, encoded) in every_coding(&plain) {
            assert!(decode(coding, &encoded) == Ok(plain.clone()), "{coding:?}");
        }
    }

    #[test]
    fn compressed_brotli_is_decoded() {
        // A thousand spaces, as the reference encoder writes them.
        let encoded = [0x1b, 0xe7, 0x03, 0xf8, 0x25, 0x40, 0xa2, 0xb1, 0x40, 0x20, 0x34];
        assert_eq!(decode(Coding::Brotli, &encoded), Ok(vec![b' '; 1000]));
    }

    #[test]
    fn what_is_cut_short_or_followed_by_more_is_broken() {
        for (coding, encoded) in every_coding(b"history segment") {
            let cut = &encoded[..encoded.len() - 1];
            assert_eq!(decode(coding, cut), Err(Broken), "{coding:?}, cut");
            let mut longer = encoded.clone();
            longer.extend(b"more");
            assert_eq!(decode(coding, &longer), Err(Broken), "{coding:?}, longer");
            assert_eq!(decode(coding, b"plain text"), Err(Broken), "{coding:?}, plain");
        }
    }

    #[test]
    fn gzip_in_several_members_is_one_body() {
        let mut encoded = gzip(b"one ");
        encoded.extend(gzip(b"two"));
        assert_eq!(decode(Coding::Gzip, &encoded).unwrap(), b"one two");
    }

    #[test]
    fn a_zstd_window_above_the_limit_is_broken() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&noise()).unwrap();
        assert_eq!(decode(Coding::Zstd, &encoder.finish().unwrap()), Err(Broken));
    }

    #[test]
    fn a_bomb_puts_out_no_more_than_a_step_at_a_time() {
        let mut whole = Encoded::default();
        whole.push(&gzip(&vec![0; 10_000_000]));
        let mut decoder = Decoder::new(Coding::Gzip, whole).unwrap();
        let mut decoded = Vec::new();
        assert_eq!(decoder.step(&mut decoded), Ok(Step::More));
        assert!(decoded.len() <= STEP);
    }

    #[test]
    fn input_without_output_does_not_hold_up_its_thread() {
        // Empty stored blocks: five bytes each that decode to nothing.
        let mut whole = Encoded::default();
        whole.push(&[0, 0, 0, 0xff, 0xff].repeat(1_000_000));
        let mut decoder = Decoder::new(Coding::Deflate, whole).unwrap();
        let before = decoder.left();
        assert_eq!(decoder.step(&mut Vec::new()), Ok(Step::More));
        assert!(before - decoder.left() <= STEP_INPUT);
    }
}
