//! The memory that all bodies in flight, requests and responses, may hold together.
//!
//! Bodies of up to [`SMALL`] bytes share a part of their own, so that large ones never hold up the
//! everyday traffic. A body of known length reserves it whole. One of unknown length begins in the
//! small share and grows in the large one; there it may only take what leaves an order in which
//! every growing body can still reach its largest size, so two of them never wait for each other.

use crate::config::Limits;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Bodies of up to this many bytes belong to the small share.
pub const SMALL: usize = 1024 * 1024;

/// The small share is counted in units of this many bytes.
const UNIT: usize = 1024;

/// Both shares. Cheap to share by reference; one for the whole server.
pub struct Memory {
    small: Arc<Semaphore>,
    large: Arc<Large>,
    wait: Duration,
}

/// A piece of the memory; given back when dropped.
pub enum Reservation {
    /// Of the small share.
    Small(OwnedSemaphorePermit),
    /// Of the large share.
    Large(Share),
}

/// No memory became free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Memory {
    /// Split as the configuration says.
    pub fn new(limits: &Limits) -> Memory {
        // A small body must always fit, however little there is.
        let small = limits.small_memory().max(SMALL);
        Memory {
            small: Arc::new(Semaphore::new(small / UNIT)),
            large: Arc::new(Large::new(limits.large_memory())),
            wait: limits.memory_wait,
        }
    }

    /// The size of the large share in bytes: no body can ever hold more.
    pub fn largest(&self) -> usize {
        self.large.capacity
    }

    /// Whether someone waits for memory of the large share.
    pub fn is_wanted(&self) -> bool {
        self.large.waiting.load(Relaxed) > 0
    }

    /// Reserves memory for a body of at most [`SMALL`] bytes, if that takes no waiting.
    pub fn reserve_now(&self, bytes: usize) -> Option<Reservation> {
        if bytes > SMALL {
            return None;
        }
        let permit = self.small.clone().try_acquire_many_owned(units(bytes)).ok()?;
        Some(Reservation::Small(permit))
    }

    /// Reserves memory for a body of this many bytes, waiting if need be.
    pub async fn reserve(&self, bytes: usize) -> Result<Reservation, Exhausted> {
        if bytes > SMALL {
            return self.enter(bytes, bytes).await;
        }
        if let Some(reservation) = self.reserve_now(bytes) {
            return Ok(reservation);
        }
        let permit = self.small.clone().acquire_many_owned(units(bytes));
        match tokio::time::timeout(self.wait, permit).await {
            Ok(Ok(permit)) => Ok(Reservation::Small(permit)),
            _ => Err(Exhausted),
        }
    }

    /// Makes a reservation hold at least this many bytes, on the way to at most `claim`.
    pub async fn grow(
        &self,
        reservation: &mut Reservation,
        bytes: usize,
        claim: usize,
    ) -> Result<(), Exhausted> {
        match reservation {
            held if held.bytes() >= bytes => {}
            // The small piece is held until the larger one is there. Nobody who holds a large one
            // ever waits for a small one, so this cannot go round in a circle.
            Reservation::Small(_) => *reservation = self.enter(bytes, claim.max(bytes)).await?,
            Reservation::Large(share) => {
                if let Some(granted) = share.large.grow(share.key, bytes)? {
                    self.wait_for(granted).await?;
                }
            }
        }
        Ok(())
    }

    async fn enter(&self, bytes: usize, claim: usize) -> Result<Reservation, Exhausted> {
        let share = match self.large.enter(bytes, claim)? {
            Entry::Granted(share) => share,
            Entry::Wait(granted) => self.wait_for(granted).await?,
        };
        Ok(Reservation::Large(share))
    }

    async fn wait_for<T>(&self, granted: oneshot::Receiver<T>) -> Result<T, Exhausted> {
        self.large.waiting.fetch_add(1, Relaxed);
        let _others_move_up = MoveUp(&self.large);
        match tokio::time::timeout(self.wait, granted).await {
            Ok(Ok(granted)) => Ok(granted),
            _ => Err(Exhausted),
        }
    }
}

/// In how many units of the small share so many bytes are.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

impl Reservation {
    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        match self {
            Reservation::Small(permit) => permit.num_permits() * UNIT,
            Reservation::Large(share) => share.large.held(share.key),
        }
    }

    /// Whether it is of the large share.
    pub fn is_large(&self) -> bool {
        matches!(self, Reservation::Large(_))
    }

    /// Gives back what is more than this many bytes; it will not grow again.
    pub fn shrink(&mut self, bytes: usize) {
        match self {
            Reservation::Small(permit) => {
                let spare = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT));
                drop(permit.split(spare));
            }
            Reservation::Large(share) => share.large.shrink(share.key, bytes),
        }
    }
}

/// A piece of the large share.
pub struct Share {
    large: Arc<Large>,
    key: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.large.leave(self.key);
    }
}

/// Whoever stops waiting may have stood in the way of others.
struct MoveUp<'a>(&'a Arc<Large>);

impl Drop for MoveUp<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
        self.0.serve();
    }
}

struct Large {
    capacity: usize,
    /// How many wait.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    free: usize,
    next_key: u64,
    held: BTreeMap<u64, Held>,
    /// Those that hold a piece already go first: others may be waiting for what they hold.
    growing: Vec<Growth>,
    entering: VecDeque<Entrant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    bytes: usize,
    /// What it may grow to.
    claim: usize,
}

struct Growth {
    key: u64,
    bytes: usize,
    reply: oneshot::Sender<()>,
}

struct Entrant {
    held: Held,
    reply: oneshot::Sender<Share>,
}

enum Entry {
    Granted(Share),
    Wait(oneshot::Receiver<Share>),
}

impl Large {
    fn new(capacity: usize) -> Large {
        let state = State {
            free: capacity,
            next_key: 0,
            held: BTreeMap::new(),
            growing: Vec::new(),
            entering: VecDeque::new(),
        };
        Large { capacity, waiting: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, key: u64) -> usize {
        self.state().held.get(&key).map_or(0, |held| held.bytes)
    }

    fn enter(self: &Arc<Self>, bytes: usize, claim: usize) -> Result<Entry, Exhausted> {
        if claim > self.capacity {
            return Err(Exhausted);
        }
        let mut state = self.state();
        let held = Held { bytes, claim };
        if state.entering.is_empty() && state.may_enter(self.capacity, held) {
            let key = state.admit(held);
            return Ok(Entry::Granted(Share { large: self.clone(), key }));
        }
        let (reply, granted) = oneshot::channel();
        state.entering.push_back(Entrant { held, reply });
        Ok(Entry::Wait(granted))
    }

    /// `None`: it has grown; else it will have once the receiver says so.
    fn grow(&self, key: u64, bytes: usize) -> Result<Option<oneshot::Receiver<()>>, Exhausted> {
        let mut state = self.state();
        if state.held.get(&key).is_none_or(|held| held.claim < bytes) {
            return Err(Exhausted);
        }
        if state.try_grow(self.capacity, key, bytes) {
            return Ok(None);
        }
        let (reply, granted) = oneshot::channel();
        state.growing.push(Growth { key, bytes, reply });
        Ok(Some(granted))
    }

    fn shrink(self: &Arc<Self>, key: u64, bytes: usize) {
        let mut state = self.state();
        let Some(held) = state.held.get_mut(&key) else { return };
        let spare = held.bytes.saturating_sub(bytes);
        held.bytes -= spare;
        held.claim = held.bytes;
        state.free += spare;
        drop(state);
        self.serve();
    }

    fn leave(self: &Arc<Self>, key: u64) {
        let mut state = self.state();
        let held = state.held.remove(&key);
        state.free += held.map_or(0, |held| held.bytes);
        drop(state);
        self.serve();
    }

    /// Grants what can be granted now. Replies go out after the lock is free: a share that nobody
    /// takes any more comes back here.
    fn serve(self: &Arc<Self>) {
        let mut state = self.state();
        let grown = state.serve_growing(self.capacity);
        let entered = state.serve_entering(self.capacity);
        drop(state);
        for reply in grown {
            let _ = reply.send(());
        }
        for (reply, key) in entered {
            let _ = reply.send(Share { large: self.clone(), key });
        }
    }
}

impl State {
    fn admit(&mut self, held: Held) -> u64 {
        self.next_key += 1;
        self.held.insert(self.next_key, held);
        self.free -= held.bytes;
        self.next_key
    }

    fn may_enter(&self, capacity: usize, new: Held) -> bool {
        new.bytes <= self.free && all_can_finish(capacity, self.held.values().copied().chain([new]))
    }

    fn try_grow(&mut self, capacity: usize, key: u64, bytes: usize) -> bool {
        let Some(held) = self.held.get(&key).copied() else { return false };
        let more = bytes.saturating_sub(held.bytes);
        let after = self.held.iter().map(|(other, held)| match *other == key {
            true => Held { bytes, ..*held },
            false => *held,
        });
        if more > self.free || !all_can_finish(capacity, after) {
            return false;
        }
        self.free -= more;
        self.held.insert(key, Held { bytes: held.bytes + more, ..held });
        true
    }

    fn serve_growing(&mut self, capacity: usize) -> Vec<oneshot::Sender<()>> {
        let mut granted = Vec::new();
        for growth in std::mem::take(&mut self.growing) {
            if growth.reply.is_closed() {
                continue;
            }
            if self.try_grow(capacity, growth.key, growth.bytes) {
                granted.push(growth.reply);
            } else {
                self.growing.push(growth);
            }
        }
        granted
    }

    fn serve_entering(&mut self, capacity: usize) -> Vec<(oneshot::Sender<Share>, u64)> {
        let mut granted = Vec::new();
        while let Some(first) = self.entering.pop_front() {
            if first.reply.is_closed() {
                continue;
            }
            if !self.may_enter(capacity, first.held) {
                self.entering.push_front(first);
                break;
            }
            granted.push((first.reply, self.admit(first.held)));
        }
        granted
    }
}

/// Whether some order exists in which every body reaches its claim, each giving back what it holds
/// once it is done. Those that hold their claim already need nothing more and end by themselves.
fn all_can_finish(capacity: usize, held: impl Iterator<Item = Held>) -> bool {
    let mut growing: Vec<Held> = held.filter(|held| held.bytes < held.claim).collect();
    growing.sort_unstable_by_key(|held| held.claim - held.bytes);
    let taken: usize = growing.iter().map(|held| held.bytes).sum();
    let Some(mut free) = capacity.checked_sub(taken) else { return false };
    growing.iter().all(|held| {
        let can_finish = held.claim - held.bytes <= free;
        free += held.bytes;
        can_finish
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const MIB: usize = 1024 * 1024;

    fn held(bytes: usize, claim: usize) -> Held {
        Held { bytes, claim }
    }

    fn memory(wait: Duration) -> Memory {
        let limits = Config::default().limits;
        Memory::new(&Limits { body: 10 * MIB, memory: 16 * MIB, memory_wait: wait, ..limits })
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(work)
    }

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn growing_bodies_are_granted_only_what_leaves_an_order_to_finish_in() {
        let can = |capacity, bodies: &[Held]| all_can_finish(capacity, bodies.iter().copied());
        assert!(can(100, &[]));
        assert!(can(100, &[held(50, 100)]));
        assert!(can(192, &[held(50, 100), held(50, 100), held(40, 100)]));
        assert!(!can(192, &[held(70, 100), held(61, 100), held(61, 100)][..2].repeat(2)));
        assert!(!can(100, &[held(60, 100), held(40, 100)]));
        assert!(can(100, &[held(60, 100), held(0, 100)]));
        // What is held whole comes back by itself.
        assert!(can(100, &[held(60, 60), held(40, 100)]));
    }

    #[test]
    fn a_grant_never_leads_into_a_deadlock_whatever_the_order_of_requests() {
        // Three bodies want to grow to 10 of 16 in steps; whoever is refused waits. Some body can
        // always go on until all are done.
        for seed in 0..200_u64 {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut bodies = vec![held(1, 10); 3];
            while bodies.iter().any(|body| body.bytes > 0) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let start = (random >> 33) as usize % 3;
                let mut moved = false;
                for n in (0..3).map(|n| (start + n) % 3) {
                    if bodies[n].bytes == 0 {
                        continue;
                    }
                    if bodies[n].bytes == 10 {
                        bodies[n] = held(0, 0);
                        moved = true;
                        break;
                    }
                    let mut after = bodies.clone();
                    after[n].bytes += 1;
                    let taken: usize = after.iter().map(|body| body.bytes).sum();
                    if taken <= 16 && all_can_finish(16, after.iter().copied()) {
                        bodies = after;
                        moved = true;
                        break;
                    }
                }
                assert!(moved, "stuck at {bodies:?}");
            }
        }
    }

    #[test]
    fn small_bodies_do_not_wait_for_large_ones() {
        run(async {
            let memory = memory(SOON);
            let _large = memory.reserve(12 * MIB).await.unwrap();
            assert_eq!(memory.reserve(2 * MIB).await.err(), Some(Exhausted));
            let small = memory.reserve(SMALL).await.unwrap();
            assert_eq!(small.bytes(), SMALL);
        });
    }

    #[test]
    fn what_is_given_back_or_shrunk_serves_those_who_wait() {
        run(async {
            let memory = Arc::new(memory(LONG));
            let mut first = memory.reserve(12 * MIB).await.unwrap();
            let waiting = tokio::spawn({
                let memory = memory.clone();
                async move { memory.reserve(4 * MIB).await.map(|reserved| reserved.bytes()) }
            });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            first.shrink(8 * MIB);
            assert_eq!(waiting.await.unwrap(), Ok(4 * MIB));
            drop(first);
            assert!(memory.reserve(12 * MIB).await.is_ok());
        });
    }

    #[test]
    fn whoever_gives_up_lets_the_next_one_pass() {
        run(async {
            let memory = Arc::new(memory(LONG));
            let _held = memory.reserve(6 * MIB).await.unwrap();
            let hopeless = tokio::spawn({
                let memory = memory.clone();
                async move { memory.reserve(10 * MIB).await.map(drop) }
            });
            tokio::task::yield_now().await;
            let patient = tokio::spawn({
                let memory = memory.clone();
                async move { memory.reserve(6 * MIB).await.map(drop) }
            });
            tokio::task::yield_now().await;
            assert!(!patient.is_finished());
            hopeless.abort();
            assert_eq!(patient.await.unwrap(), Ok(()));
        });
    }

    #[test]
    fn bodies_that_grow_side_by_side_all_get_there() {
        run(async {
            let memory = Arc::new(memory(LONG));
            let mut bodies = Vec::new();
            for _ in 0..8 {
                let memory = memory.clone();
                bodies.push(tokio::spawn(async move {
                    let mut reservation = memory.reserve(SMALL / 8).await?;
                    for mib in 1..=10 {
                        memory.grow(&mut reservation, mib * MIB, 10 * MIB).await?;
                        tokio::task::yield_now().await;
                    }
                    Ok::<_, Exhausted>(reservation.bytes())
                }));
            }
            for body in bodies {
                assert_eq!(body.await.unwrap(), Ok(10 * MIB));
            }
            assert!(memory.reserve(12 * MIB).await.is_ok());
        });
    }

    #[test]
    fn nothing_waits_for_what_can_never_be() {
        run(async {
            let memory = memory(LONG);
            assert_eq!(memory.reserve(13 * MIB).await.err(), Some(Exhausted));
            let mut growing = memory.reserve(SMALL).await.unwrap();
            memory.grow(&mut growing, 2 * MIB, 3 * MIB).await.unwrap();
            assert_eq!(memory.grow(&mut growing, 4 * MIB, 4 * MIB).await, Err(Exhausted));
        });
    }
}
