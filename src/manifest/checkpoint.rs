//! Planning a checkpoint: which pages of the previous one stay, and what the new ones hold.
//!
//! Pure. A page stays when no change since then touched its offsets; a page that is not full and has
//! a changed neighbour is merged with it, so that chains which grow at the end have full pages.

use bytes::Bytes;

use crate::store::names::ManifestName;
use crate::types::envelope::EnvelopeError;
use crate::types::{Sha256, UploadId};

use super::chain::{Chain, Item};
use super::documents::{Document as _, PAGE_ITEMS_MAX, Page, PageRef, Root};

/// What a checkpoint writes.
#[derive(Debug)]
pub(super) struct Plan {
    /// The new pages with their bytes.
    pub(super) new_pages: Vec<(ManifestName, Bytes)>,
    /// The root.
    pub(super) root: Root,
}

/// The checkpoint of the chain as it stands. `random` makes the names of new pages this writer's own.
pub(super) fn plan(chain: &Chain, random: u64) -> Result<Plan, EnvelopeError> {
    let kept = kept_pages(chain);
    let mut pages = Vec::new();
    let mut new_pages = Vec::new();
    let mut next = chain.start_offset();
    let mut kept = kept.into_iter().peekable();
    while let Some(from) = next {
        if let Some(page) = kept.next_if(|page| page.from_offset == from) {
            next = Some(page.to_offset).filter(|to| Some(*to) != chain.end_offset());
            pages.push(page);
            continue;
        }
        let until = kept.peek().map_or(i64::MAX, |page| page.from_offset);
        let items: Vec<Item> = chain
            .items_from(from)
            .take(PAGE_ITEMS_MAX)
            .take_while(|item| item.from_offset() < until)
            .collect();
        let Some(to) = items.last().map(Item::to_offset) else { break };
        let page = Page { items };
        let bytes = page.encode()?;
        let id = UploadId::from_random(random.wrapping_add(new_pages.len() as u64));
        let name = ManifestName::Page(chain.version(), id);
        pages.push(PageRef {
            name: name.to_string(),
            sha256: Sha256::of(&bytes),
            from_offset: from,
            to_offset: to,
            count: page.items.len(),
        });
        new_pages.push((name, bytes));
        next = Some(to).filter(|to| Some(*to) != chain.end_offset());
    }
    Ok(Plan { new_pages, root: Root { version: chain.version(), pages } })
}

fn kept_pages(chain: &Chain) -> Vec<PageRef> {
    let Some(previous) = &chain.checkpoint else { return Vec::new() };
    let touches = |from: i64, to: i64| chain.dirty.iter().any(|(f, t)| *f < to && from < *t);
    let clean: Vec<bool> =
        previous.pages.iter().map(|p| !touches(p.from_offset, p.to_offset)).collect();
    let stays = |i: usize, page: &PageRef| {
        let full = page.count >= PAGE_ITEMS_MAX;
        let neighbour_before = i > 0 && !clean[i - 1];
        let neighbour_behind =
            clean.get(i + 1).map_or_else(|| touches(page.to_offset, i64::MAX), |c| !c);
        clean[i] && (full || !(neighbour_before || neighbour_behind))
    };
    let pages = previous.pages.iter().enumerate();
    pages.filter(|(i, page)| stays(*i, page)).map(|(_, page)| page.clone()).collect()
}
