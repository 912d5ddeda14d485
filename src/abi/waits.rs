//! The names of `WAIT_*` numbers, for logs.

use super::*;

/// The name of a `WAIT_*` number in lower case, as logs have it; `unknown` for one that this
/// version does not know.
#[must_use]
pub fn wait_name(wait: u16) -> &'static str {
    match wait {
        WAIT_NONE => "none",
        WAIT_LANE => "lane",
        WAIT_CLASS => "class",
        WAIT_WINDOW_OPS => "window_ops",
        WAIT_WINDOW_BYTES => "window_bytes",
        WAIT_FABRIC => "fabric",
        WAIT_EARLIER => "earlier",
        WAIT_NOTIFY => "notify",
        WAIT_RAIL => "rail",
        WAIT_CREDIT => "credit",
        WAIT_WINDOW_WRS => "window_wrs",
        WAIT_PEER => "peer",
        WAIT_TURN => "turn",
        WAIT_CAP => "cap",
        WAIT_BELL => "bell",
        WAIT_INTAKE => "intake",
        WAIT_CQ => "cq",
        WAIT_RECORDS => "records",
        WAIT_QUOTA_OPS => "quota_ops",
        WAIT_QUOTA_BYTES => "quota_bytes",
        WAIT_PAGES => "pages",
        WAIT_SEARCH => "search",
        WAIT_CLOSED => "closed",
        WAIT_REVOKED => "revoked",
        WAIT_PREDECESSOR => "predecessor",
        WAIT_SURVIVOR => "survivor",
        WAIT_EDGES => "edges",
        WAIT_QUOTA_EDGES => "quota_edges",
        WAIT_DISTANCE => "distance",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_has_a_name_of_its_own() {
        let table = table();
        let waits =
            table.iter().filter(|(name, _)| name.starts_with("WAIT_") && name != "WAIT_REASONS");
        for (name, number) in waits {
            let said = wait_name(u16::try_from(*number).unwrap());
            assert_eq!(said, name["WAIT_".len()..].to_lowercase());
        }
    }
}
