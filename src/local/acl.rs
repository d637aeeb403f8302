//! POSIX access lists as extended attributes hold them, for files whose attributes a stub keeps.
//!
//! On local disk the filesystem keeps mode and list in step by itself; here the same is done by hand.
//! The layout is the kernel's: a version, then entries of tag, permissions and id, all little-endian.

use rustix::io::{Errno, Result};

/// The list that decides who may use the file.
pub const ACCESS: &str = "system.posix_acl_access";
/// The list that a directory's new entries inherit.
pub const DEFAULT: &str = "system.posix_acl_default";

const VERSION: [u8; 4] = [2, 0, 0, 0];
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

fn permissions(entry: &[u8]) -> u32 {
    u32::from(u16::from_le_bytes([entry[2], entry[3]]) & 7)
}

fn entries(list: &[u8]) -> Result<std::slice::ChunksExact<'_, u8>> {
    let body = list.strip_prefix(&VERSION).ok_or(Errno::INVAL)?;
    if !body.len().is_multiple_of(ENTRY_BYTES) {
        return Err(Errno::INVAL);
    }
    Ok(body.chunks_exact(ENTRY_BYTES))
}

/// The nine permission bits that a list stands for, and whether they say all of it. EINVAL for no valid list.
pub fn mode_of(list: &[u8]) -> Result<(u32, bool)> {
    let find = |wanted| -> Result<Option<u32>> {
        Ok(entries(list)?.find(|e| tag(e) == wanted).map(permissions))
    };
    let (user, group) = (find(USER_OBJ)?, find(GROUP_OBJ)?);
    let (mask, other) = (find(MASK)?, find(OTHER)?);
    let (Some(user), Some(group), Some(other)) = (user, group, other) else {
        return Err(Errno::INVAL);
    };
    let minimal = entries(list)?.len() == 3;
    if !minimal && mask.is_none() {
        return Err(Errno::INVAL);
    }
    Ok((user << 6 | mask.unwrap_or(group) << 3 | other, minimal))
}

/// The list after a chmod to `mode`.
pub fn with_mode(list: &[u8], mode: u32) -> Result<Vec<u8>> {
    let has_mask = entries(list)?.any(|e| tag(e) == MASK);
    let mut changed = VERSION.to_vec();
    for entry in entries(list)? {
        let bits = match tag(entry) {
            USER_OBJ => mode >> 6,
            MASK => mode >> 3,
            GROUP_OBJ if !has_mask => mode >> 3,
            OTHER => mode,
            _ => permissions(entry),
        };
        changed.extend_from_slice(&entry[..2]);
        changed.extend_from_slice(&((bits & 7) as u16).to_le_bytes());
        changed.extend_from_slice(&entry[4..]);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_vec();
        for (tag, bits, id) in entries {
            out.extend(tag.to_le_bytes());
            out.extend(bits.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    #[test]
    fn mode_and_list_say_the_same_in_both_directions() {
        let none = u32::MAX;
        let named =
            list(&[(1, 6, none), (2, 7, 12), (4, 5, none), (0x10, 4, none), (0x20, 0, none)]);
        assert_eq!(mode_of(&named), Ok((0o640, false)));
        let changed = with_mode(&named, 0o4731).unwrap();
        let expected =
            list(&[(1, 7, none), (2, 7, 12), (4, 5, none), (0x10, 3, none), (0x20, 1, none)]);
        assert_eq!(changed, expected);
        let minimal = list(&[(1, 6, none), (4, 4, none), (0x20, 4, none)]);
        assert_eq!(mode_of(&minimal), Ok((0o644, true)));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let none = u32::MAX;
        for bad in [
            vec![],
            vec![1, 0, 0, 0],
            list(&[(1, 6, none)]),
            list(&[(1, 6, none), (2, 7, 12), (4, 5, none), (0x20, 0, none)]),
            [list(&[(1, 6, none), (4, 4, none), (0x20, 4, none)]), vec![0]].concat(),
        ] {
            assert_eq!(mode_of(&bad), Err(Errno::INVAL), "{bad:?}");
        }
    }
}
