//! Records as fields, and fields as bytes. Bytes that may be many are kept apart, so that nobody
//! copies them.

use super::{CLIENT, Counts, DECISION, DEVICE, EVENT, HEAD, Head, SYNC, VERSION};
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use crate::storage::contents::{Client, Decision, Device, LastUse, Record, Version};
use crate::storage::registry::Event;
use uuid::Uuid;

/// What is wrong with a record whose checksum is right.
pub type What = &'static str;

const SHORT: What = "a record is too short";
const LONG: What = "a record is too long";
const MALFORMED: What = "a record's field is not what it should be";
const UNKNOWN: What = "there is a record of a kind that this version does not know";

/// Puts the fields of a record into `out`; returns its kind and the bytes that follow the fields.
pub fn of_record<'r>(record: &Record<'r>, out: &mut Vec<u8>) -> (u8, &'r [u8]) {
    match record {
        Record::Client(client) => (CLIENT, of_client(client, out)),
        Record::Version(version) => {
            uuid(out, version.client.uuid());
            uuid(out, version.id.uuid());
            uuid(out, version.parent.uuid());
            (VERSION, version.segment)
        }
        Record::Decision(decision) => {
            uuid(out, decision.client.uuid());
            optional(out, decision.label.as_deref(), text);
            int(out, i64::from(decision.state == State::Suspended));
            optional(out, decision.created, int);
            (DECISION, &[])
        }
        Record::Device(device) => {
            uuid(out, device.client.uuid());
            text(out, &device.name);
            int(out, device.created);
            (DEVICE, device.token_hash)
        }
        Record::Sync(sync) => {
            uuid(out, sync.client.uuid());
            text(out, &sync.device);
            text(out, &sync.program);
            int(out, sync.at);
            (SYNC, &[])
        }
        Record::Event(event) => {
            uuid(out, event.id);
            int(out, event.at);
            optional(out, event.client, |out, client| uuid(out, client.uuid()));
            text(out, &event.user);
            text(out, &event.action);
            text(out, &event.detail);
            (EVENT, &[])
        }
    }
}

fn of_client<'r>(client: &Client<'r>, out: &mut Vec<u8>) -> &'r [u8] {
    uuid(out, client.client.uuid());
    uuid(out, client.latest.uuid());
    let Some((snapshot, bytes)) = client.snapshot else {
        out.push(0);
        return &[];
    };
    out.push(1);
    uuid(out, snapshot.version.uuid());
    int(out, snapshot.timestamp);
    int(out, i64::from(snapshot.versions_since));
    bytes
}

pub fn of_head(head: &Head, out: &mut Vec<u8>) -> u8 {
    int(out, head.created);
    int(out, head.schema);
    text(out, &head.program);
    text(out, &head.database);
    HEAD
}

pub fn of_counts(counts: &Counts, out: &mut Vec<u8>) {
    for number in counts.numbers() {
        int(out, number as i64);
    }
}

fn uuid(out: &mut Vec<u8>, uuid: Uuid) {
    out.extend_from_slice(uuid.as_bytes());
}

fn int(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn optional<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

/// The record of a kind with this content.
pub fn record(kind: u8, content: &[u8]) -> Result<Record<'_>, What> {
    let mut fields = Fields(content);
    let record = match kind {
        CLIENT => Record::Client(fields.client_with_snapshot()?),
        VERSION => Record::Version(Version {
            client: fields.client()?,
            id: fields.version()?,
            parent: fields.version()?,
            segment: fields.rest(),
        }),
        DECISION => Record::Decision(Decision {
            client: fields.client()?,
            label: fields.optional(Fields::text)?,
            state: if fields.switch()? { State::Suspended } else { State::Active },
            created: fields.optional(Fields::int)?,
        }),
        DEVICE => Record::Device(Device {
            client: fields.client()?,
            name: fields.text()?,
            created: fields.int()?,
            token_hash: fields.rest(),
        }),
        SYNC => Record::Sync(LastUse {
            client: fields.client()?,
            device: fields.text()?,
            program: fields.text()?,
            at: fields.int()?,
        }),
        EVENT => Record::Event(Event {
            id: fields.uuid()?,
            at: fields.int()?,
            client: fields.optional(Fields::client)?,
            user: fields.text()?,
            action: fields.text()?,
            detail: fields.text()?,
        }),
        _ => return Err(UNKNOWN),
    };
    fields.end().map(|()| record)
}

pub fn head(content: &[u8]) -> Result<Head, What> {
    let mut fields = Fields(content);
    let head = Head {
        created: fields.int()?,
        schema: fields.int()?,
        program: fields.text()?,
        database: fields.text()?,
    };
    fields.end().map(|()| head)
}

/// Whether the counts of the end are these.
pub fn check_counts(content: &[u8], counts: &Counts) -> Result<(), What> {
    let mut expected = Vec::new();
    of_counts(counts, &mut expected);
    if content == expected { Ok(()) } else { Err("records are missing, or too many") }
}

/// What is left of a record.
struct Fields<'r>(&'r [u8]);

impl<'r> Fields<'r> {
    fn take(&mut self, length: usize) -> Result<&'r [u8], What> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], What> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }

    fn uuid(&mut self) -> Result<Uuid, What> {
        self.array().map(Uuid::from_bytes)
    }

    fn client(&mut self) -> Result<ClientId, What> {
        self.uuid().map(ClientId::from)
    }

    fn version(&mut self) -> Result<VersionId, What> {
        self.uuid().map(VersionId::from)
    }

    fn int(&mut self) -> Result<i64, What> {
        self.array().map(i64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, What> {
        let length = u32::from_le_bytes(self.array()?);
        let text = self.take(length as usize)?;
        str::from_utf8(text).map(str::to_owned).map_err(|_| MALFORMED)
    }

    fn switch(&mut self) -> Result<bool, What> {
        match self.int()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MALFORMED),
        }
    }

    fn is_there(&mut self) -> Result<bool, What> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(MALFORMED),
        }
    }

    fn optional<T>(&mut self, take: impl FnOnce(&mut Self) -> Result<T, What>) -> Result<Option<T>, What> {
        if self.is_there()? { take(self).map(Some) } else { Ok(None) }
    }

    fn client_with_snapshot(&mut self) -> Result<Client<'r>, What> {
        let (client, latest) = (self.client()?, self.version()?);
        if !self.is_there()? {
            return Ok(Client { client, latest, snapshot: None });
        }
        let (version, timestamp) = (self.version()?, self.int()?);
        let versions_since = u32::try_from(self.int()?).map_err(|_| MALFORMED)?;
        let snapshot = Snapshot { version, timestamp, versions_since };
        Ok(Client { client, latest, snapshot: Some((snapshot, self.rest())) })
    }

    fn rest(&mut self) -> &'r [u8] {
        std::mem::take(&mut self.0)
    }

    fn end(self) -> Result<(), What> {
        if self.0.is_empty() { Ok(()) } else { Err(LONG) }
    }
}
