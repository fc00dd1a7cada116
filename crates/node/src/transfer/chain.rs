//! A differencing VHD and its parents: found by the names that the files hold, in the folder of the
//! first one, and nowhere else. A parent is taken by its identity, never by its name alone.

use std::collections::BTreeSet;
use std::path::Path;

use blockio::FileDevice;
use catalog::{CatalogError, Code, Result};
use image::{Kind, LayerImage, ParentRef, Sniffed, Uuid, sniff};

use super::places::{Place, Places};
use super::sources::{Disk, ends, open_vhd};
use crate::problem::Outcome;

/// Longest chain: a volume has no more layers than this.
const MAX_LAYERS: usize = catalog::MAX_SNAPSHOTS;
/// Names tried for one parent: eight locators and the header's own.
const MAX_NAMES: usize = 9;

/// A file of a chain.
pub(crate) struct Member {
    pub(crate) disk: Disk,
    /// Its name without its ending.
    pub(crate) stem: String,
}

/// The leaf and all its parents, the base first.
pub(crate) async fn find(places: &Places, leaf: Place, file: FileDevice) -> Result<Vec<Member>> {
    let folder = leaf.path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut leaf_first = Vec::new();
    let mut seen: BTreeSet<Uuid> = BTreeSet::new();
    let (mut path, mut file) = (leaf.path, file);
    let mut image = open_vhd(&file).await.map_err(|error| error.during(path.display()))?;
    loop {
        if !seen.insert(image.uuid) {
            let message =
                format!("{}: its parents come back to disk {}", path.display(), image.uuid);
            return Err(CatalogError::new(Code::Corrupt, message));
        }
        if leaf_first.len() == MAX_LAYERS {
            let message = format!(
                "{}: it is number {} of its chain; {MAX_LAYERS} files are the most",
                path.display(),
                MAX_LAYERS + 1
            );
            return Err(CatalogError::new(Code::SnapshotLimit, message)
                .hint("merge some of them where they were made, then import again"));
        }
        let (child, wanted) = (path.clone(), image.parent.clone());
        leaf_first.push(Member { stem: stem(&path), disk: Disk::vhd(&path, file, image) });
        let Some(wanted) = wanted else { break };
        if wanted.is_raw() {
            leaf_first.push(raw_parent(places, &folder, &child, &wanted).await?);
            break;
        }
        (path, file, image) = parent(places, &folder, &child, &wanted).await?;
    }
    leaf_first.reverse();
    check_sizes(&leaf_first)?;
    Ok(leaf_first)
}

/// The parent of the file at `child`: the first of its names under which that very disk stands.
async fn parent(
    places: &Places,
    folder: &Path,
    child: &Path,
    wanted: &ParentRef,
) -> Result<(std::path::PathBuf, FileDevice, LayerImage)> {
    let mut tried = Vec::new();
    for name in wanted.file_names().into_iter().take(MAX_NAMES) {
        let path = folder.join(&name);
        let Some(file) = open(places, &path, &mut tried).await else { continue };
        match open_vhd(&file).await {
            Ok(image) if image.uuid == wanted.uuid => return Ok((path, file, image)),
            Ok(image) => tried.push(format!("{} is disk {}", path.display(), image.uuid)),
            Err(error) => tried.push(format!("{}: {error}", path.display())),
        }
    }
    Err(missing(child, &format!("disk {}", wanted.uuid), &tried))
}

/// A parent without an identity: a raw file, as Xen's tools have it.
async fn raw_parent(
    places: &Places,
    folder: &Path,
    child: &Path,
    wanted: &ParentRef,
) -> Result<Member> {
    let mut tried = Vec::new();
    for name in wanted.file_names().into_iter().take(MAX_NAMES) {
        let path = folder.join(&name);
        let Some(file) = open(places, &path, &mut tried).await else { continue };
        let (head, tail) = ends(&file).await.map_err(|error| error.during(path.display()))?;
        if sniff(&head, &tail) == Sniffed::Unknown {
            return Ok(Member { stem: stem(&path), disk: Disk::raw(&path, file) });
        }
        tried.push(format!("{} is not raw", path.display()));
    }
    Err(missing(child, "a raw file", &tried))
}

async fn open(places: &Places, path: &Path, tried: &mut Vec<String>) -> Option<FileDevice> {
    let opened: Outcome<FileDevice> = async {
        let place = places.place(path.to_owned()).await?;
        places.open(&place).await
    }
    .await;
    opened.map_err(|problem| tried.push(problem.detail.trim_end_matches('.').to_owned())).ok()
}

fn missing(child: &Path, what: &str, tried: &[String]) -> CatalogError {
    let tried = if tried.is_empty() { "it names no file".to_owned() } else { tried.join("; ") };
    let message = format!("the parent of {} is missing, {what}: {tried}", child.display());
    CatalogError::new(Code::NotFound, message)
        .hint("put the parent into the same folder, under the name that the child has for it")
}

fn check_sizes(base_first: &[Member]) -> Result<()> {
    for (parent, child) in base_first.iter().zip(base_first.iter().skip(1)) {
        if child.disk.size < parent.disk.size {
            let message = format!(
                "{}: it has {} bytes and its parent {} has {}",
                child.disk.name, child.disk.size, parent.disk.name, parent.disk.size
            );
            return Err(CatalogError::new(Code::BadSize, message)
                .hint("disks only grow here: merge the two where they were made"));
        }
    }
    Ok(())
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Names for the snapshots that the layers below the leaf become: of the files, made fit.
pub(crate) fn snapshot_names(base_first: &[Member]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for member in base_first.iter().take(base_first.len().saturating_sub(1)) {
        let stem = member.stem.rsplit_once('@').map_or(member.stem.as_str(), |(_, name)| name);
        let fit = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = stem.chars().map(fit).collect();
        let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let base: String = name.chars().take(56).collect();
        let base = if base.is_empty() { "layer".to_owned() } else { base };
        let mut name = base.clone();
        let mut number = 1;
        while names.contains(&name) {
            number += 1;
            name = format!("{base}-{number}");
        }
        names.push(name);
    }
    names
}

/// Refuses a differencing disk where no chain was asked for.
pub(crate) fn alone(path: &Path, image: &LayerImage) -> Result<()> {
    if image.kind != Kind::Differencing {
        return Ok(());
    }
    let message = format!("{}: it is a differencing disk and needs its parents", path.display());
    Err(CatalogError::new(Code::BadRequest, message)
        .hint("import it with --chain, which looks for its parents in the same folder"))
}
