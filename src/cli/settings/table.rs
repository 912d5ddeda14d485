//! The tables of settings, every one once: the engine's, and those of single uids.

use std::ffi::OsStr;
use std::fmt;

use verbring::host::{Config, UidQuota};

use super::form::{Form, Shown};
use super::text::{
    read_address, read_bytes, read_class, read_cpu, read_devices, read_mode, read_number,
    read_order, read_path, read_per_class, read_places, read_switch, read_use, show_list,
    show_per_class, show_places, store, use_name,
};
use crate::cli::class_name;

/// One row of [`TABLE`].
pub(super) struct Setting {
    /// As in the file, dotted, and in [`Config`].
    pub(super) key: &'static str,
    pub(super) form: Form,
    pub(super) help: &'static str,
    pub(super) read: fn(&Config) -> Shown,
    /// False if the text cannot be read.
    pub(super) write: fn(&mut Config, &OsStr) -> bool,
}

impl Setting {
    pub(super) fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setting({})", self.key)
    }
}

macro_rules! table {
    ($($key:literal $form:ident $(($kind:ty))? $($field:ident).+, $help:literal;)*) => {
        pub(super) const TABLE: &[Setting] = &[$(Setting {
            key: $key,
            form: table!(@form $form $($kind)?),
            help: $help,
            read: |config| table!(@read $form config.$($field).+),
            write: |config, text| table!(@write $form config.$($field).+, text),
        },)*];
    };
    (@form Number $kind:ty) => { Form::Number(<$kind>::MAX as u64) };
    (@form Bytes $kind:ty) => { Form::Bytes(<$kind>::MAX as u64) };
    (@form $form:ident) => { Form::$form };
    (@read Number $field:expr) => { Shown::Number(u64::from($field)) };
    (@read Bytes $field:expr) => { Shown::Number(u64::from($field)) };
    (@read Mode $field:expr) => { Shown::Text(format!("{:04o}", $field)) };
    (@read Path $field:expr) => {
        $field.as_ref().map_or(Shown::Unset, |path| Shown::Text(path.display().to_string()))
    };
    (@read Address $field:expr) => {
        $field.map_or(Shown::Unset, |address| Shown::Text(address.to_string()))
    };
    (@read Cpu $field:expr) => {
        $field.map_or(Shown::Text("none".to_string()), |cpu| Shown::Number(cpu.into()))
    };
    (@read Places $field:expr) => { show_places(&$field) };
    (@read Devices $field:expr) => { show_list(&$field) };
    (@read PerClass $field:expr) => { show_per_class($field) };
    (@read Use $field:expr) => { Shown::Text(use_name($field).to_string()) };
    (@read Order $field:expr) => { Shown::Text($field.to_string()) };
    (@read Switch $field:expr) => { Shown::Switch($field) };
    (@read Class $field:expr) => { Shown::Text(class_name($field).to_string()) };
    (@write Number $field:expr, $text:ident) => { store(&mut $field, read_number($text)) };
    (@write Bytes $field:expr, $text:ident) => { store(&mut $field, read_bytes($text)) };
    (@write Mode $field:expr, $text:ident) => { store(&mut $field, read_mode($text)) };
    (@write Path $field:expr, $text:ident) => { store(&mut $field, read_path($text)) };
    (@write Address $field:expr, $text:ident) => { store(&mut $field, read_address($text)) };
    (@write Cpu $field:expr, $text:ident) => { store(&mut $field, read_cpu($text)) };
    (@write Places $field:expr, $text:ident) => { store(&mut $field, read_places($text)) };
    (@write Devices $field:expr, $text:ident) => { store(&mut $field, read_devices($text)) };
    (@write PerClass $field:expr, $text:ident) => { store(&mut $field, read_per_class($text)) };
    (@write Use $field:expr, $text:ident) => { store(&mut $field, read_use($text)) };
    (@write Order $field:expr, $text:ident) => { store(&mut $field, read_order($text)) };
    (@write Switch $field:expr, $text:ident) => { store(&mut $field, read_switch($text)) };
    (@write Class $field:expr, $text:ident) => { store(&mut $field, read_class($text)) };
}

table! {
    "engine" Number(u8) engine, "The engine's number, 0 to 255: part of every record id";
    "socket" Path socket, "Where to listen";
    "socket_mode" Mode socket_mode, "Mode of the socket file: who may attach is settled here first";
    "records" Number(u32) records, "Ops in flight, over all sessions";
    "list_blocks" Number(u32) list_blocks,
        "Page-list blocks of 64 pages for WRITEV and READV, over all sessions";
    "edges" Number(u32) edges, "Edges of ops that wait for others, over all sessions";
    "sessions_max" Number(u32) sessions_max, "Sessions at once";
    "rings_max" Number(u32) rings_max, "Rings at once, over all sessions";
    "regions_max" Number(u32) regions_max, "Regions and imports at once, over all sessions";
    "window_ops" Number(u32) window_ops, "Ops in flight on the device";
    "window_bytes" Bytes(u64) window_bytes, "Bytes in flight on the device; at least one slice";
    "window_wrs" Number(u32) window_wrs, "Work requests in flight on the device";
    "slice_bytes" Bytes(u32) slice_bytes,
        "A large op moves in slices of at most this many bytes";
    "slice_us" Number(u32) slice_us,
        "Microseconds that a slice is to take at the measured rate, if it has 4 KiB (32 KiB to a \
         peer) or more; 0 leaves slices whole";
    "mode" Order mode, "Which op goes next: weighted, strict, fifo, tent or direct";
    "class_weights" PerClass class_weights, "Weighted: shares of high, medium and low";
    "min_share" Number(u16) min_share,
        "Strict: thousandths of all bytes that medium and low each get at the least";
    "floor_bytes" Bytes(u32) floor_bytes, "A work request counts as at least so many bytes";
    "aging_medium_us" Number(u32) aging_medium_us,
        "Microseconds after which a queued medium op counts as high; 0 for never";
    "aging_low_us" Number(u32) aging_low_us,
        "Microseconds after which a queued low op counts as high; 0 for never";
    "reserve_ops" Number(u32) reserve_ops, "Part of window_ops for the engine's own work";
    "reserve_bytes" Bytes(u64) reserve_bytes, "Part of window_bytes for the engine's own work";
    "peer_ops" Number(u32) peer_ops, "Ops in flight towards one peer; 0 for the card's bound";
    "peer_wrs" Number(u32) peer_wrs,
        "Work requests in flight towards one peer; 0 for the card's bound";
    "peer_bytes" Bytes(u64) peer_bytes,
        "Bytes in flight towards one peer; 0 for the card's bound";
    "coalesce" Switch coalesce,
        "Whether ops that ask for it (COALESCE, SUPERSEDE) are folded";
    "intake_budget" Number(u32) intake_budget, "SQEs taken from one ring in one turn";
    "recorder_entries" Number(u32) recorder_entries,
        "Ended ops that a session's flight recorder holds, a power of two; 0 for none";
    "spin_us" Number(u32) spin_us, "Microseconds the engine looks for work before it sleeps";
    "ring_idle_ms" Number(u32) ring_idle_ms,
        "Milliseconds without an SQE after which a ring leaves the poll set";
    "drain_ms" Number(u32) drain_ms, "Milliseconds that shutdown waits for posted ops";
    "first_index" Number(u32) first_index, "First value of every ring's cursors";
    "pin" Cpu pin, "CPU to pin the engine thread to";
    "verbs" Use verbs, "Whether queue pairs are used: off; auto, with a card; require, or fail";
    "verbs_device" Devices verbs_device,
        "The card's device and port, or several; all that can be used, near ones first; auto is \
         what verbring devices calls chosen";
    "verbs_gid" Places verbs_gid,
        "Place in the ports' tables of GIDs; auto is what verbring devices calls chosen";
    "verbs_window_ops" Number(u32) verbs_window_ops, "Ops in flight on one card";
    "verbs_window_wrs" Number(u32) verbs_window_wrs, "Work requests in flight on one card";
    "verbs_window_bytes" Bytes(u64) verbs_window_bytes,
        "Bytes in flight on one card; at least one slice";
    "verbs_depth" Number(u32) verbs_depth, "Work requests in flight on one rail";
    "verbs_receives" Number(u32) verbs_receives,
        "Notifications that a peer may send on one rail before any is handed out";
    "verbs_timeout" Number(u8) verbs_timeout,
        "Time to an acknowledgement: 4.096 us * 2^this";
    "verbs_retry" Number(u8) verbs_retry, "Repeats without an acknowledgement";
    "verbs_rnr_retry" Number(u8) verbs_rnr_retry,
        "Repeats while the peer has no receive; 7 is without end";
    "verbs_lease_ms" Number(u32) verbs_lease_ms,
        "How long ops under way to a lost peer wait, unless it says that it is quiet, or is dead";
    "listen" Address listen, "Where engines of other hosts come in; takes psk_file";
    "psk_file" Path psk_file,
        "File of the key that engines of other hosts must have, too; see verbring key";
    "peer_silence_ms" Number(u32) peer_silence_ms,
        "How long another engine may not answer until it is lost";
    "verbs_mtu" Number(u32) verbs_mtu, "Largest path MTU to use, bytes";
    "verbs_service_level" PerClass verbs_service_level,
        "Service level, of all classes or of high, medium and low";
    "verbs_traffic_class" PerClass verbs_traffic_class,
        "Traffic class (DSCP and ECN), of all classes or of high, medium and low";
    "rails_max" Number(u16) rails_max, "Rails at once, this host among them";
    "quota.sessions" Number(u32) quota.sessions, "Sessions at once of one uid";
    "quota.rings" Number(u32) quota.rings, "Rings at once of one uid";
    "quota.regions" Number(u32) quota.regions, "Regions and imports at once of one uid";
    "quota.region_bytes" Bytes(u64) quota.region_bytes, "Bytes in regions of one uid";
    "quota.ops" Number(u32) quota.ops, "Ops in flight of one uid";
    "quota.op_bytes" Bytes(u64) quota.op_bytes, "Bytes that ops in flight of one uid ask for";
    "quota.high_bytes" Bytes(u64) quota.high_bytes,
        "Bytes of class high that one uid has posted at once";
    "quota.edges" Number(u32) quota.edges, "Edges of ops of one uid that wait for others";
    "quota.weight" Number(u8) quota.weight, "Share of one uid beside others of the same class";
    "quota.control_per_s" Number(u32) quota.control_per_s,
        "Control messages a second of one uid; more are answered later";
    "quota.class_ceiling" Class quota.class_ceiling,
        "Most urgent class of one uid: high, medium or low";
}

/// What a uid may have of its own, as `quota` has it for all.
pub(super) struct UidSetting {
    /// As in the file's table of that uid, and in [`UidQuota`].
    pub(super) key: &'static str,
    pub(super) form: Form,
    pub(super) read: fn(&UidQuota) -> Shown,
    /// False if the text cannot be read.
    pub(super) write: fn(&mut UidQuota, &OsStr) -> bool,
}

macro_rules! uid_table {
    ($($field:ident $form:ident $(($kind:ty))?;)*) => {
        pub(super) const UID_TABLE: &[UidSetting] = &[$(UidSetting {
            key: stringify!($field),
            form: table!(@form $form $($kind)?),
            read: |own| own.$field.map_or(Shown::Unset, |value| table!(@read $form value)),
            write: |own, text| {
                let mut value = own.$field.unwrap_or_default();
                let read = table!(@write $form value, text);
                own.$field = if read { Some(value) } else { own.$field };
                read
            },
        },)*];
    };
}

uid_table! {
    sessions Number(u32);
    rings Number(u32);
    regions Number(u32);
    region_bytes Bytes(u64);
    ops Number(u32);
    op_bytes Bytes(u64);
    high_bytes Bytes(u64);
    edges Number(u32);
    weight Number(u8);
    control_per_s Number(u32);
    class_ceiling Class;
}

/// Starts every setting's name in the environment.
pub(super) const VARIABLE_PREFIX: &str = "VERBRING_";
