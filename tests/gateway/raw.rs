//! Clients that send what no library would: HTTP/1.1 as bytes, and HTTP/2 frame by frame.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kubewharf_testkit::pki::{Authority, Identity};
use kubewharf_testkit::tls::Connection;

pub(crate) const WITHIN: Duration = Duration::from_secs(30);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[high, middle, low, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// Header fields for HPACK (RFC 7541): each literally, without an index and without Huffman's code.
pub(crate) fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let list: Vec<(&[u8], &[u8])> = list.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    raw_fields(&list)
}

pub(crate) fn raw_fields(list: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0);
        for text in [name, value] {
            // An integer with a prefix of seven bits.
            let mut rest = text.len();
            if rest < 127 {
                block.push(rest as u8);
            } else {
                block.push(127);
                rest -= 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
            block.extend_from_slice(text);
        }
    }
    block
}

/// A frame of the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// How a stream, or the connection, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// An answer with that status.
    Status(u16),
    /// RST_STREAM with that code.
    Reset(u32),
    /// GOAWAY with that code, which is not that of a graceful end, or the connection's end.
    Connection(Option<u32>),
    /// Nothing came in time.
    Nothing,
}

impl End {
    /// Whether the gateway did not take the request.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Status(400..500) | Self::Reset(_) | Self::Connection(_))
    }
}

/// An HTTP/2 connection.
pub(crate) struct Http2 {
    connection: Connection,
    authority: String,
    next_stream: u32,
}

impl Http2 {
    /// Connects, and says no more than TLS needs.
    pub(crate) fn connect(address: SocketAddr, authority: &Authority, identity: Option<&Identity>) -> Self {
        let connection = Connection::open_for("h2", address, authority, identity, WITHIN).unwrap();
        Self { connection, authority: address.to_string(), next_stream: 1 }
    }

    /// Connects and begins. The gateway must not use a table for its headers, so that [`Http2::end`] can read them.
    pub(crate) fn open(address: SocketAddr, authority: &Authority, identity: Option<&Identity>) -> Self {
        let mut this = Self::connect(address, authority, identity);
        let no_table = [0, 1, 0, 0, 0, 0];
        let begin = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &no_table)].concat();
        this.write(&begin).unwrap();
        this
    }

    /// Fails when the connection has ended.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.connection.write_all(bytes)?;
        self.connection.flush()
    }

    /// A stream that was not used yet.
    pub(crate) fn stream(&mut self) -> u32 {
        self.next_stream += 2;
        self.next_stream - 2
    }

    /// The head of a request with these further fields.
    pub(crate) fn head(&self, method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let pseudo = [(":method", method), (":scheme", "https"), (":path", path), (":authority", &self.authority)];
        fields(&[&pseudo[..], more].concat())
    }

    /// Sends a request without a body; gives its stream.
    pub(crate) fn get(&mut self, path: &str, more: &[(&str, &str)]) -> u32 {
        let stream = self.stream();
        let head = self.head("GET", path, more);
        self.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)).unwrap();
        stream
    }

    /// The next frame; `None` when the connection has ended, an error when nothing came in time.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.connection.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
            Err(_) => return Ok(None),
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if self.connection.read_exact(&mut payload).is_err() {
            return Ok(None);
        }
        let stream = u32::from_be_bytes([head[5] & 127, head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        match (frame.kind, frame.flags) {
            (SETTINGS, 0) => drop(self.write(&self::frame(SETTINGS, ACK, 0, &[]))),
            (PING, 0) => drop(self.write(&self::frame(PING, ACK, 0, &frame.payload))),
            _ => {}
        }
        Ok(Some(frame))
    }

    /// How that stream ends: by an answer, or not.
    pub(crate) fn end(&mut self, stream: u32) -> End {
        let code = |payload: &[u8]| u32::from_be_bytes(payload[..4].try_into().unwrap());
        loop {
            match self.next() {
                Ok(Some(Frame { kind: HEADERS, stream: found, payload, .. })) if found == stream => {
                    return End::Status(status(&payload));
                }
                Ok(Some(Frame { kind: RST_STREAM, stream: found, payload, .. })) if found == stream => {
                    return End::Reset(code(&payload));
                }
                Ok(Some(Frame { kind: GOAWAY, payload, .. })) if code(&payload[4..]) != 0 => {
                    return End::Connection(Some(code(&payload[4..])));
                }
                Ok(Some(_)) => {}
                Ok(None) => return End::Connection(None),
                Err(_) => return End::Nothing,
            }
        }
    }

    /// How long it takes until the connection ends, whatever comes before; `None` if it does not.
    pub(crate) fn ends_after(&mut self) -> Option<Duration> {
        let begun = Instant::now();
        loop {
            match self.next() {
                Ok(Some(_)) if begun.elapsed() < WITHIN => {}
                Ok(None) => return Some(begun.elapsed()),
                _ => return None,
            }
        }
    }

    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// The status of an answer. It comes first, and without a table it is static or written out.
fn status(block: &[u8]) -> u16 {
    // The new size of the table, which is told once.
    let block = block.strip_prefix(&[0x20]).unwrap_or(block);
    match block[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        0x08..=0x0e | 0x18..=0x1e | 0x48..=0x4e => {
            let length = usize::from(block[1] & 127);
            let text = &block[2..2 + length];
            let digits = if block[1] & 128 == 0 { text.iter().map(|byte| byte - b'0').collect() } else { digits(text) };
            digits.iter().fold(0, |number, digit| number * 10 + u16::from(*digit))
        }
        other => panic!("an answer that begins with {other:#x}"),
    }
}

/// Three digits in Huffman's code of RFC 7541: 0, 1 and 2 have five bits, the others six.
fn digits(text: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let mut digits = Vec::new();
    let mut bits = &bits[..];
    while digits.len() < 3 {
        let number = |length: usize| bits[..length].iter().fold(0, |number, bit| number << 1 | bit);
        let (digit, length) = if number(5) <= 2 { (number(5), 5) } else { (number(6) - 0b01_1001 + 3, 6) };
        digits.push(digit);
        bits = &bits[length..];
    }
    digits
}

/// What the gateway answers over HTTP/1.1 to these bytes, and whether it ended the connection after that. It is waited for
/// until there are `enough` answers, or nothing has come for a while.
pub(crate) fn http1(
    address: SocketAddr,
    authority: &Authority,
    identity: Option<&Identity>,
    bytes: &[u8],
    enough: usize,
) -> (Vec<u16>, bool) {
    let mut connection =
        Connection::open_for("http/1.1", address, authority, identity, Duration::from_millis(700)).unwrap();
    // It may be closed before all is written.
    let _ = connection.write_all(bytes).and_then(|()| connection.flush());
    let mut answers = Vec::new();
    let mut buffer = [0; 4096];
    let has_ended = loop {
        if statuses(&answers).len() >= enough {
            break false;
        }
        match connection.read(&mut buffer) {
            Ok(0) => break true,
            Ok(length) => answers.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
            Err(_) => break true,
        }
    };
    (statuses(&answers), has_ended)
}

/// The statuses of all answers whose first line has come.
fn statuses(answers: &[u8]) -> Vec<u16> {
    let answers = String::from_utf8_lossy(answers);
    let begin = answers.match_indices("HTTP/1.").map(|(at, before)| &answers[at + before.len()..]);
    begin.filter_map(|rest| rest.get(2..5)).map(|status| status.parse().unwrap()).collect()
}
