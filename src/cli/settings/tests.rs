//! Layers, each kind of mistake, and that what is printed reads back the same.

use std::sync::atomic::{AtomicU32, Ordering};

use super::form::Shown;
use super::table::UID_TABLE;
use super::*;

fn none() -> Environment {
    Environment::new()
}

fn variables(given: &[(&str, &str)]) -> Environment {
    given.iter().map(|(name, text)| (name.to_string(), OsString::from(text))).collect()
}

fn flags(given: &[(&str, &str)]) -> Flags {
    let given = given.iter().map(|(key, text)| {
        let place = TABLE.iter().position(|setting| setting.key == *key).unwrap();
        let (text, flag) = (OsString::from(text), format!("--{}", TABLE[place].flag()));
        Given { place: Place::Engine(place), text, flag }
    });
    Flags(given.collect())
}

/// A file of this test alone, gone with the value.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "verbring-settings-{}-{}.toml",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn refusal(text: &str) -> String {
    let file = File::new(text);
    let error = Settings::layered(Some(&file.0), &none(), &Flags::default()).unwrap_err();
    error.to_string().replace(&file.0.display().to_string(), "FILE")
}

#[test]
fn each_layer_covers_the_one_below() {
    let file = File::new("records = 100\nwindow_ops = 7\nspin_us = 1\n[quota]\nops = 3\n");
    let environment = variables(&[
        ("VERBRING_WINDOW_OPS", "8"),
        ("VERBRING_SPIN_US", "2"),
        ("VERBRING_QUOTA_RINGS", "5"),
    ]);
    let flags = flags(&[("spin_us", "3")]);
    let settings = Settings::layered(Some(&file.0), &environment, &flags).unwrap();
    let config = settings.config();
    assert_eq!((config.records, config.window_ops, config.spin_us), (100, 8, 3));
    assert_eq!((config.quota.ops, config.quota.rings), (3, 5));
    assert_eq!(config.slice_bytes, Config::default().slice_bytes);
    let from = |key: &str| settings.to_json()[key]["from"].as_str().unwrap().to_string();
    assert_eq!(from("records"), format!("{}:1", file.0.display()));
    assert_eq!(from("quota.ops"), format!("{}:5", file.0.display()));
    assert_eq!(from("window_ops"), "environment VERBRING_WINDOW_OPS");
    assert_eq!(from("spin_us"), "flag --spin-us");
    assert_eq!(from("slice_bytes"), "default");
}

#[test]
fn pairs_are_flags_under_another_name() {
    let pairs = |given: &[&str]| {
        Flags::from_pairs(&given.iter().map(|pair| pair.to_string()).collect::<Vec<_>>())
            .and_then(|flags| Settings::layered(None, &none(), &flags))
    };
    let settings = pairs(&["quota.ops=3", "spin_us=1", "spin_us=2"]).unwrap();
    assert_eq!((settings.config().quota.ops, settings.config().spin_us), (3, 2));
    let refused = |pair: &str| pairs(&[pair]).unwrap_err().to_string();
    assert_eq!(
        refused("spin_us=x"),
        "flag --set spin_us: spin_us is \"x\", but must be a whole number, 0 to 1000000"
    );
    assert!(refused("spin_us").contains("spin_us is \"\""), "no value");
    let text = "flag --set spin_u=1: unknown key spin_u; the nearest known one is spin_us";
    assert_eq!(refused("spin_u=1"), text);
}

#[test]
fn what_is_printed_gives_the_same_settings_again() {
    let given = [
        ("socket", "/tmp/a \"b\".sock"),
        ("socket_mode", "660"),
        ("pin", "1"),
        ("window_bytes", "4MiB"),
        ("first_index", "0xffffffff"),
        ("verbs", "require"),
        ("verbs_device", "rxe0:1, rxe2"),
        ("verbs_gid", "3,1"),
        ("verbs_service_level", "3, 2,1"),
        ("verbs_traffic_class", "106"),
        ("quota.class_ceiling", "low"),
    ];
    let settings = Settings::layered(None, &none(), &flags(&given)).unwrap();
    assert_eq!(settings.config().socket_mode, 0o660);
    assert_eq!(settings.config().window_bytes, 4 << 20);
    assert_eq!(settings.config().first_index, u32::MAX);
    assert_eq!(settings.config().verbs_service_level, [3, 2, 1]);
    assert_eq!(settings.config().verbs_traffic_class, [106; 3]);
    assert_eq!(settings.config().verbs_gid, [3, 1]);
    let json = settings.to_json();
    assert_eq!(json["verbs_device"]["value"], "rxe0:1,rxe2");
    let file = File::new(&settings.to_toml());
    let again = Settings::layered(Some(&file.0), &none(), &Flags::default()).unwrap();
    assert_eq!(settings.config(), again.config());
}

#[test]
fn one_device_and_its_gid_are_written_as_ever() {
    let given = [("verbs_device", "mlx5_0:2"), ("verbs_gid", "3")];
    let json = Settings::layered(None, &none(), &flags(&given)).unwrap().to_json();
    assert_eq!((json["verbs_device"]["value"].as_str()), Some("mlx5_0:2"));
    assert_eq!(json["verbs_gid"]["value"], 3);
    let json = Settings::layered(None, &none(), &Flags::default()).unwrap().to_json();
    assert_eq!((json["verbs_device"]["value"].as_str()), Some("auto"));
    assert_eq!((json["verbs_gid"]["value"].as_str()), Some("auto"));
}

#[test]
fn an_unset_value_is_a_comment_in_toml_and_null_in_json() {
    let settings = Settings::layered(None, &none(), &Flags::default()).unwrap();
    assert!(settings.to_toml().contains("# socket is not set"));
    assert!(settings.to_json()["socket"]["value"].is_null());
    assert_eq!(settings.config(), &Config::default());
}

#[test]
fn unknown_keys_name_file_line_path_and_the_nearest() {
    let nearest = "the nearest known one is";
    assert_eq!(
        refusal("# first\nrecrods = 64\n"),
        format!("FILE:2: unknown key recrods; {nearest} records")
    );
    assert_eq!(
        refusal("[quota]\nsesions = 1\n"),
        format!("FILE:2: unknown key quota.sesions; {nearest} quota.sessions")
    );
    assert_eq!(
        refusal("[quotas]\nrings = 1\n"),
        format!("FILE:2: unknown key quotas.rings; {nearest} quota.rings")
    );
    assert_eq!(
        refusal("[windows]\n"),
        format!("FILE:1: unknown key windows; {nearest} window_wrs")
    );
}

#[test]
fn wrong_types_and_ranges_name_key_value_and_limit() {
    for (text, expected) in [
        (
            "records = \"100\"",
            "FILE:1: records is the string \"100\", but must be a whole \
            number, 64 to 16777216",
        ),
        ("records = -1", "FILE:1: records is -1, but must be a whole number, 64 to 16777216"),
        ("records = 1.5", "FILE:1: records is 1.5, but must be a whole number, 64 to 16777216"),
        (
            "records = 5000000000",
            "FILE:1: records is 5000000000, but must be a whole number, \
            64 to 16777216",
        ),
        ("records = 63", "FILE:1: records is 63, but must be 64 to 16777216"),
        ("engine = 256", "FILE:1: engine is 256, but must be a whole number, 0 to 255"),
        ("socket = 5", "FILE:1: socket is 5, but must be a path that is not empty"),
        (
            "socket = \"\"",
            "FILE:1: socket is the string \"\", but must be a path that is not \
            empty",
        ),
        (
            "socket_mode = 600",
            "FILE:1: socket_mode is 600, but must be permission bits in \
            octal, 0000 to 0777",
        ),
        (
            "socket_mode = 0o1777",
            "FILE:1: socket_mode is 01777, but must be permission bits \
            in octal, 0000 to 0777",
        ),
        (
            "window_bytes = \"1 MB\"",
            "FILE:1: window_bytes is the string \"1 MB\", but must be \
            131072 to 1099511627776 bytes; KiB, MiB or GiB may follow",
        ),
        ("verbs = true", "FILE:1: verbs is true, but must be off, auto or require"),
        (
            "verbs_mtu = 1500",
            "FILE:1: verbs_mtu is 1500, but must be 256, 512, 1024, 2048 \
            or 4096",
        ),
        (
            "verbs_service_level = \"1,2\"",
            "FILE:1: verbs_service_level is the string \"1,2\", but must be a whole number, \
            0 to 15, or three of them, \"HIGH,MEDIUM,LOW\"",
        ),
        ("rails_max = 65", "FILE:1: rails_max is 65, but must be 2 to 64"),
        ("pin = true", "FILE:1: pin is true, but must be a CPU's number or none"),
        ("quota = 5", "FILE:1: quota is 5, but must be a table"),
        ("[records]", "FILE:1: records is a table, but must be a whole number, 64 to 16777216"),
        (
            "[quota]\nclass_ceiling = \"urgent\"",
            "FILE:2: quota.class_ceiling is the string \
            \"urgent\", but must be high, medium or low",
        ),
    ] {
        assert_eq!(refusal(text), expected);
    }
    let error = Settings::layered(None, &none(), &flags(&[("spin_us", "fast")])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "flag --spin-us: spin_us is \"fast\", but must be a whole number, 0 to 1000000"
    );
}

#[test]
fn devices_that_cannot_be_are_refused_with_what_may() {
    for text in ["rxe0:0", "rxe0,rxe0:1", "rxe0,,rxe2", "a,b,c,d,e"] {
        let expected = format!(
            "FILE:1: verbs_device is the string \"{text}\", but must be DEVICE or \
             DEVICE:PORT, with a port from 1 to 255; or up to 4 of them, \"A,B\", each once; \
             or all, or auto"
        );
        assert_eq!(refusal(&format!("verbs_device = \"{text}\"")), expected);
    }
    assert_eq!(
        refusal("verbs_device = \"rxe0,rxe2\"\nverbs_gid = \"1,2,3\""),
        "FILE:2: verbs_gid is 3, but must be one number for all devices, or one for each of 2"
    );
}

#[test]
fn a_value_out_of_range_is_no_matter_once_it_is_covered() {
    let file = File::new("window_ops = 0\n");
    assert!(Settings::layered(Some(&file.0), &none(), &Flags::default()).is_err());
    let settings = Settings::layered(Some(&file.0), &none(), &flags(&[("window_ops", "1")]));
    assert_eq!(settings.unwrap().config().window_ops, 1);
}

#[test]
fn files_that_cannot_be_read_or_parsed_are_named() {
    let error = Settings::layered(Some(Path::new("/nowhere/x.toml")), &none(), &Flags::default())
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nowhere/x.toml");
    assert!(refusal("records = 64\nrecords = 65\n").starts_with("FILE:2: "));
    assert!(refusal("records 64\n").starts_with("FILE:1: "));
}

/// The table has each field of `Config` once: a field that is missing would keep its default
/// whatever is written.
#[test]
fn the_table_is_complete() {
    let mut text = format!("{:?}", Config::default());
    for setting in TABLE {
        let field = setting.key.rsplit('.').next().unwrap();
        let at = text.find(&format!(" {field}: ")).expect(setting.key);
        text.replace_range(at..at + field.len() + 2, " ");
    }
    assert_eq!(text.matches(": ").count(), 2, "a field without a row: {text}");
    assert!(text.contains("quota: Quota") && text.contains("uid: {}"));
}

/// What all uids have, each may have of its own.
#[test]
fn a_uid_s_table_is_that_of_all_uids() {
    let of_all: Vec<_> = TABLE.iter().filter_map(|it| it.key.strip_prefix("quota.")).collect();
    let of_one: Vec<_> = UID_TABLE.iter().map(|setting| setting.key).collect();
    assert_eq!(of_all, of_one);
    let mut config = Config::default();
    for place in Place::of_uid(7) {
        let (text, quota) = if place.key() == "uid.7.class_ceiling" {
            ("low", "quota.class_ceiling".to_string())
        } else {
            ("33", place.key().replace("uid.7", "quota"))
        };
        let of_all = Place::find(&quota).unwrap();
        assert_eq!(format!("{:?}", place.form()), format!("{:?}", of_all.form()));
        assert!(place.write(&mut config, OsStr::new(text)));
        assert!(of_all.write(&mut config, OsStr::new(text)));
    }
    assert_ne!(config.quota, Config::default().quota);
    config.quota = Config::default().quota;
    let own = config.quota_of(7);
    assert_eq!((own.sessions, own.rings, own.regions, own.ops), (33, 33, 33, 33));
    assert_eq!((own.region_bytes, own.op_bytes, own.high_bytes), (33, 33, 33));
    assert_eq!((own.weight, own.control_per_s), (33, 33));
    assert_eq!(own.class_ceiling, verbring::abi::Class::Low);
}

/// The page names every setting, with its default and what it must be.
#[test]
fn the_page_of_settings_is_the_table() {
    let page = include_str!("../../../docs/settings.md");
    let rows = Place::engine().zip(TABLE).map(|(place, setting)| {
        let default = match place.read(&Config::default()) {
            Shown::Unset => "none".to_string(),
            Shown::Number(number) => number.to_string(),
            Shown::Switch(on) => on.to_string(),
            Shown::Text(text) => text,
        };
        format!("| `{}` | {default} | {} | {} |\n", setting.key, place.limit(), setting.help)
    });
    let rows: String = rows.collect();
    assert!(page.contains(&rows), "docs/settings.md must hold:\n{rows}");
}

#[test]
fn a_uid_s_contract_comes_in_layers_over_what_all_have() {
    let file = File::new(
        "[quota]\nops = 5\nweight = 2\n[uid.1000]\nops = 9\nhigh_bytes = \"1MiB\"\n\
         [uid.0]\nclass_ceiling = \"low\"\n[uid.7]\n",
    );
    let environment = variables(&[
        ("VERBRING_UID_1000_OPS", "10"),
        ("VERBRING_UID_65534_HIGH_BYTES", "4KiB"),
        ("VERBRING_QUOTA_RINGS", "3"),
    ]);
    let set = ["uid.1000.weight=4".to_string(), "quota.ops=6".to_string()];
    let flags = Flags::from_pairs(&set).unwrap();
    let settings = Settings::layered(Some(&file.0), &environment, &flags).unwrap();
    let config = settings.config();
    assert_eq!(config.uid.keys().copied().collect::<Vec<_>>(), [0, 7, 1_000, 65_534]);
    let of = |uid: u32| {
        let quota = config.quota_of(uid);
        (quota.ops, quota.weight, quota.rings, quota.high_bytes)
    };
    assert_eq!(of(1_000), (10, 4, 3, 1 << 20));
    assert_eq!(of(65_534), (6, 2, 3, 4 << 10));
    assert_eq!(of(1), (6, 2, 3, 1 << 40));
    assert_eq!(config.quota_of(7), config.quota);
    let json = settings.to_json();
    let from = |key: &str| json[key]["from"].as_str().unwrap().to_string();
    assert_eq!(from("uid.1000.ops"), "environment VERBRING_UID_1000_OPS");
    assert_eq!(from("uid.1000.high_bytes"), format!("{}:6", file.0.display()));
    assert_eq!(from("uid.1000.weight"), "flag --set uid.1000.weight");
    assert!(json.get("uid.1000.rings").is_none(), "what is not named follows the quota");
    let printed = File::new(&settings.to_toml());
    let again = Settings::layered(Some(&printed.0), &none(), &Flags::default()).unwrap();
    assert_eq!(config, again.config());
}

#[test]
fn mistakes_in_a_uid_s_contract_name_file_line_key_value_and_limit() {
    let nearest = "the nearest known one is";
    for (text, expected) in [
        (
            "[uid.1000]\nwieght = 4",
            format!("FILE:2: unknown key uid.1000.wieght; {nearest} uid.1000.weight"),
        ),
        (
            "[uid.1000]\nweight = 65",
            "FILE:2: uid.1000.weight is 65, but must be 1 to 64".to_string(),
        ),
        (
            "[uid.1000]\nweight = \"4\"",
            "FILE:2: uid.1000.weight is the string \"4\", but must be a whole number, 1 to 64"
                .to_string(),
        ),
        (
            "\n[uid.1000]\nclass_ceiling = \"urgent\"",
            "FILE:3: uid.1000.class_ceiling is the string \"urgent\", but must be high, medium or \
             low"
            .to_string(),
        ),
        ("[uid.alice]\nweight = 4", format!("FILE:1: uid is \"alice\", but must be {UIDS}")),
        ("[uid.01]", format!("FILE:1: uid is \"01\", but must be {UIDS}")),
        ("[uid.4294967295]", format!("FILE:1: uid is \"4294967295\", but must be {UIDS}")),
        ("uid.5 = 4", "FILE:1: uid.5 is 4, but must be a table".to_string()),
        ("uid = 5", "FILE:1: uid is 5, but must be a table".to_string()),
    ] {
        assert_eq!(refusal(text), expected);
    }
    let environment = variables(&[("VERBRING_UID_1000_OPS", "many")]);
    let error = Settings::layered(None, &environment, &Flags::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment VERBRING_UID_1000_OPS: uid.1000.ops is \"many\", but must be a whole number, \
         1 to 16777216"
    );
    let refused = |pair: &str| Flags::from_pairs(&[pair.to_string()]).unwrap_err().to_string();
    assert_eq!(
        refused("uid.1000.weigth=4"),
        format!(
            "flag --set uid.1000.weigth=4: unknown key uid.1000.weigth; {nearest} uid.1000.weight"
        )
    );
    assert_eq!(
        refused("uid.x.weight=4"),
        format!("flag --set uid.x.weight=4: uid is \"x\", but must be {UIDS}")
    );
}

#[test]
fn variables_that_are_no_settings_are_found() {
    let names = [
        "VERBRING_RECORD",
        "VERBRING_RECORDS",
        "VERBRING_UID_0_OPS",
        "VERBRING_UID_7_OP",
        "VERBRING_UID_7_ops",
        "PATH",
        "VERBRING_VM_SECONDS",
    ];
    let found = unknown_variables(&variables(&names.map(|name| (name, "1"))));
    let expected = [
        ("VERBRING_RECORD", "VERBRING_RECORDS"),
        ("VERBRING_UID_7_OP", "VERBRING_UID_7_OPS"),
        ("VERBRING_UID_7_ops", "VERBRING_UID_7_OPS"),
    ];
    assert_eq!(found, expected.map(|(name, near)| (name.to_string(), near.to_string())));
}
