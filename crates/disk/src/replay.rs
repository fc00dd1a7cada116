//! Opening after a crash: what the log of a dead process says is applied to the leaf, and ranges that
//! no durable structure owns are made zero before anything is placed there (rules D2, D3, D5).

use std::collections::BTreeMap;
use std::rc::Rc;

use image::owner::Source;
use image::{BLOCK_SECTORS, BlockIndex, Kind, Sector};
use io::{ByteCount, ByteRange, Clear, Durability, Effort, Request};

use crate::chain::Layer;
use crate::disk::Inner;
use crate::error::OpenError;
use crate::log::Record;
use crate::space::{Place, Space};

/// What the log says of one block in the end.
#[derive(Debug, Default)]
struct Change {
    /// Some(None) = it has no place any more.
    place: Option<Option<Place>>,
    owned: Vec<(u32, u32)>,
}

/// Applies the records of a dead process in memory; the caller flushes.
pub(crate) async fn apply(inner: &Rc<Inner>, records: &[Record]) -> Result<(), OpenError> {
    let (leaf, file_len, blocks) = {
        let state = inner.state.borrow();
        let leaf = state.chain.leaf();
        (leaf.image.clone(), leaf.file.info().size.0, state.map.blocks())
    };
    if leaf.kind == Kind::Fixed && !records.is_empty() {
        let (layer, why) = (leaf.uuid, "says the log, and a fixed layer has no places");
        return Err(OpenError::Table { layer, block: 0, sector: 0, why });
    }
    let mut changes: BTreeMap<BlockIndex, Change> = BTreeMap::new();
    for record in records {
        let (Record::Map { block, .. } | Record::Own { block, .. } | Record::Unmap { block }) =
            *record;
        let bad = |sector, why| OpenError::Table { layer: leaf.uuid, block, sector, why };
        if block >= blocks {
            return Err(bad(0, "says the log, and the disk has no such block"));
        }
        let change = changes.entry(BlockIndex(block)).or_default();
        match *record {
            Record::Map { bitmap, .. } => {
                let bitmap = Sector(u64::from(bitmap));
                let place = Place::at_bitmap(bitmap)
                    .filter(|_| leaf.block_fits(bitmap, file_len))
                    .ok_or_else(|| bad(bitmap.0, "says the log, which is outside the file"))?;
                *change = Change { place: Some(Some(place)), owned: Vec::new() };
            }
            Record::Unmap { .. } => *change = Change { place: Some(None), owned: Vec::new() },
            Record::Own { from, len, .. } => {
                if from.checked_add(len).is_none_or(|end| end > BLOCK_SECTORS) {
                    return Err(bad(u64::from(from), "says the log, beyond the block's end"));
                }
                change.owned.push((from, len));
            }
        }
    }
    // all of it is checked before any of it reaches the disk
    let taken = places(inner.state.borrow().chain.leaf(), &changes)?;
    for (block, change) in &changes {
        // a block that the log placed had an empty bitmap then, whatever stands on the disk
        if change.place.is_some() {
            let mut state = inner.state.borrow_mut();
            state.chain.leaf_mut().table.remove(*block);
            state.map.forget(*block);
            state.dirty.table(*block);
        }
        inner.resolve(*block).await?;
        let must_flush = {
            let mut guard = inner.state.borrow_mut();
            let state = &mut *guard;
            let slot = state.leaf_slot();
            let differencing = state.chain.leaf().is_differencing();
            if let Some(Some(place)) = change.place {
                state.chain.leaf_mut().table.set(*block, place.bitmap());
                if !differencing {
                    let source = Source { slot, data: place.data() };
                    state.map.own(*block, source, 0, BLOCK_SECTORS);
                }
            }
            if let Some(place) = state.leaf_place(*block) {
                let source = Source { slot, data: place.data() };
                for (from, len) in &change.owned {
                    state.map.own(*block, source, *from, *len);
                }
                state.dirty.bitmap(*block);
            }
            state.make_room(Some(*block));
            state.must_flush()
        };
        // The log may have changed more blocks than there is memory for. Each block is whole by itself,
        // and the log stays until all are durable: it is replayed again if this one is cut short.
        if must_flush {
            inner.flush().await?;
        }
    }
    let mut state = inner.state.borrow_mut();
    state.space = Space::new(&leaf, &taken);
    Ok(())
}

/// The places of the leaf once the changes are made, in order.
fn places(leaf: &Layer, changes: &BTreeMap<BlockIndex, Change>) -> Result<Vec<Place>, OpenError> {
    let bad = |block: BlockIndex, sector, why| OpenError::Table {
        layer: leaf.image.uuid,
        block: block.0,
        sector,
        why,
    };
    for (block, change) in changes {
        let has_place =
            change.place.map_or(leaf.table.get(*block).is_some(), |place| place.is_some());
        if !change.owned.is_empty() && !has_place {
            return Err(bad(*block, 0, "says the log, but the block has no place"));
        }
    }
    let moved =
        |block: &BlockIndex| changes.get(block).is_some_and(|change| change.place.is_some());
    let kept = leaf
        .table
        .entries()
        .filter(|(block, _)| !moved(block))
        .map(|(block, at)| (Place::at_bitmap(at).expect("checked when it was read"), block));
    let placed =
        changes.iter().filter_map(|(block, change)| Some((change.place.flatten()?, *block)));
    let mut taken: Vec<(Place, BlockIndex)> = kept.chain(placed).collect();
    taken.sort_unstable();
    if let Some(at) = Place::overlap(taken.iter().map(|(place, _)| *place)) {
        let (place, block) = taken[at];
        let why = "where another block stands already, says the log";
        return Err(bad(block, place.bitmap().0, why));
    }
    Ok(taken.into_iter().map(|(place, _)| place).collect())
}

/// Makes every range of the leaf's file that no block owns zero: after a crash it may hold anything.
pub(crate) async fn clear_unowned(inner: &Rc<Inner>) -> Result<(), OpenError> {
    let (file, ranges, end) = {
        let state = inner.state.borrow();
        if state.chain.leaf().image.kind == Kind::Fixed {
            return Ok(());
        }
        let file = Rc::clone(&state.chain.leaf().file);
        (file, state.space.unowned(), state.space.end())
    };
    let how = if inner.keep_space.get() { Clear::KeepSpace } else { Clear::Deallocate };
    let (effort, durability) = (Effort::Any, Durability::Cached);
    for range in ranges {
        file.submit(Request::Clear { range, how, effort, durability }).await?;
    }
    let tail = file.info().size.0.saturating_sub(end.bytes());
    if inner.keep_space.get() && tail > 0 {
        let range = ByteRange::new(end.bytes(), tail);
        file.submit(Request::Clear { range, how, effort, durability }).await?;
    } else {
        file.truncate(ByteCount(end.bytes())).await?;
    }
    file.submit(Request::Flush).await?;
    Ok(())
}
