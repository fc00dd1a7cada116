//! A device in memory that tests and measurements export. It notes what it was asked, can hold
//! requests back, and can fail them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use io::{
    BlockDevice, ByteCount, ByteOffset, ByteRange, Clear, DeviceInfo, Effort, Extent, ExtentKind,
    Io, IoBuf, IoError, IoErrorKind, Request, Result,
};

const UNIT: u64 = 4096;

#[derive(Debug)]
pub struct RamDevice {
    memory: RefCell<IoBuf>,
    kinds: RefCell<Vec<ExtentKind>>,
    /// Layer of each unit, as the test set it.
    depths: RefCell<BTreeMap<u64, u32>>,
    /// Clears succeed without effect, so that the device may claim any size.
    pub ignore_clears: Cell<bool>,
    /// Bytes whose extents were asked for.
    pub looked_at: Cell<u64>,
    /// Zeroing writes zeros, as on a poor file system.
    pub slow_zeroes: Cell<bool>,
    info: Cell<DeviceInfo>,
    /// What was asked, where `keep_log` is set.
    pub log: RefCell<Vec<String>>,
    pub keep_log: Cell<bool>,
    /// Every request fails like this.
    pub fail: Cell<Option<IoErrorKind>>,
    /// Requests that touch these offsets wait until they are taken out.
    held: RefCell<Vec<u64>>,
    waiting: RefCell<Vec<Waker>>,
    /// Requests that have not ended.
    pub in_flight: Cell<usize>,
    pub most_in_flight: Cell<usize>,
}

impl RamDevice {
    pub fn new(len: usize) -> Rc<Self> {
        let info = DeviceInfo {
            size: ByteCount::of(len),
            logical_block: 512,
            physical_block: 4096,
            memory_align: 4096,
            max_io: 1 << 20,
            clear_granularity: 4096,
            read_only: false,
        };
        Rc::new(Self {
            memory: RefCell::new(IoBuf::zeroed(len)),
            kinds: RefCell::new(vec![ExtentKind::Hole; len.div_ceil(4096)]),
            depths: RefCell::default(),
            ignore_clears: Cell::new(false),
            looked_at: Cell::new(0),
            slow_zeroes: Cell::new(false),
            info: Cell::new(info),
            log: RefCell::default(),
            keep_log: Cell::new(false),
            fail: Cell::new(None),
            held: RefCell::default(),
            waiting: RefCell::default(),
            in_flight: Cell::new(0),
            most_in_flight: Cell::new(0),
        })
    }

    /// Makes requests at `offset` wait.
    pub fn hold(&self, offset: u64) {
        self.held.borrow_mut().push(offset);
    }

    /// Lets the requests at `offset` go on.
    pub fn release(&self, offset: u64) {
        self.held.borrow_mut().retain(|o| *o != offset);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Moves a unit of 4 KiB to the layer `depth`.
    pub fn sink(&self, unit: u64, depth: u32) {
        self.depths.borrow_mut().insert(unit, depth);
    }

    pub fn set_info(&self, change: impl FnOnce(&mut DeviceInfo)) {
        let mut info = self.info.get();
        change(&mut info);
        self.info.set(info);
    }

    /// Makes the device longer; what is added reads as zero.
    pub fn grow(&self, len: usize) {
        let new = IoBuf::zeroed(len);
        new.write_at(0, &self.memory.borrow().to_vec());
        *self.memory.borrow_mut() = new;
        self.kinds.borrow_mut().resize(len.div_ceil(4096), ExtentKind::Hole);
        self.set_info(|i| i.size = ByteCount::of(len));
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        self.memory.borrow().slice(at, len).to_vec()
    }

    fn view(&self, at: ByteOffset, len: usize) -> Result<IoBuf> {
        let range = ByteRange { start: at, len: ByteCount::of(len) };
        if !range.is_within(self.info.get().size) {
            return Err(IoError::new(IoErrorKind::OutOfRange, "beyond the RAM device"));
        }
        Ok(self.memory.borrow().slice(ByteCount(at.0).as_len(), len))
    }

    fn mark(&self, range: ByteRange, kind: ExtentKind) {
        let (first, end) = (range.start.0 / UNIT, (range.start.0 + range.len.0).div_ceil(UNIT));
        let units = ByteCount(first).as_len()..ByteCount(end).as_len();
        self.kinds.borrow_mut()[units].fill(kind);
    }

    fn run(&self, request: Request) -> Result<()> {
        if let Some(kind) = self.fail.get() {
            return Err(IoError::new(kind, format!("the device was told to fail: {kind:?}")));
        }
        match request {
            Request::Read { at, into } => copy(&self.view(at, into.len())?, &into),
            Request::Write { at, from, .. } => {
                copy(&from, &self.view(at, from.len())?);
                self.mark(ByteRange { start: at, len: from.count() }, ExtentKind::Data);
            }
            Request::Clear { effort: Effort::Quick, .. } if self.slow_zeroes.get() => {
                return Err(IoError::new(IoErrorKind::Unsupported, "zeros would be written"));
            }
            Request::Clear { .. } if self.ignore_clears.get() => {}
            Request::Clear { range, how, .. } => {
                self.view(range.start, range.len.as_len())?.fill(0);
                let kind = match how {
                    Clear::Deallocate => ExtentKind::Hole,
                    Clear::KeepSpace => ExtentKind::Zero,
                };
                self.mark(range, kind);
            }
            Request::Flush => {}
        }
        Ok(())
    }
}

fn copy(from: &IoBuf, to: &IoBuf) {
    let mut piece = [0; 4096];
    for at in (0..to.len()).step_by(piece.len()) {
        let part = &mut piece[..(to.len() - at).min(4096)];
        from.read_at(at, part);
        to.write_at(at, part);
    }
}

fn describe(request: &Request) -> (Option<u64>, String) {
    match request {
        Request::Read { at, into } => (Some(at.0), format!("read {}+{}", at.0, into.len())),
        Request::Write { at, from, durability } => {
            (Some(at.0), format!("write {}+{} {durability:?}", at.0, from.len()))
        }
        Request::Clear { range, how, effort, durability } => {
            let quick = if *effort == Effort::Quick { "quick " } else { "" };
            (Some(range.start.0), format!("{quick}clear {range:?} {how:?} {durability:?}"))
        }
        Request::Flush => (None, "flush".to_owned()),
    }
}

impl BlockDevice for RamDevice {
    fn info(&self) -> DeviceInfo {
        self.info.get()
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        if !self.keep_log.get() && self.held.borrow().is_empty() {
            return Box::pin(async move { self.run(request) });
        }
        let (at, text) = describe(&request);
        self.log.borrow_mut().push(text);
        self.in_flight.set(self.in_flight.get() + 1);
        self.most_in_flight.set(self.most_in_flight.get().max(self.in_flight.get()));
        Box::pin(async move {
            poll_fn(|context| {
                if at.is_some_and(|at| self.held.borrow().contains(&at)) {
                    self.waiting.borrow_mut().push(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            self.in_flight.set(self.in_flight.get() - 1);
            self.run(request)
        })
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            if let Some(kind) = self.fail.get() {
                return Err(IoError::new(kind, "the device was told to fail"));
            }
            self.looked_at.set(self.looked_at.get() + range.len.0);
            let mut found: Vec<Extent> = Vec::new();
            let (mut at, end) = (range.start.0, range.start.0 + range.len.0);
            while at < end {
                let unit = at / UNIT;
                let kind = self.kinds.borrow()[ByteCount(unit).as_len()];
                let stop = end.min((unit + 1) * UNIT);
                let mut next = Extent::flat(ByteRange::new(at, stop - at), kind);
                if let Some(depth) = self.depths.borrow().get(&unit) {
                    next.depth = *depth;
                }
                if !found.last_mut().is_some_and(|last| last.absorbs(&next)) {
                    found.push(next);
                }
                at = stop;
            }
            Ok(found)
        })
    }
}
