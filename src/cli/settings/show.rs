//! The settings in force, printed: as a file that gives the same again, or as one object.

use super::Settings;
use super::form::Shown;
use super::place::Place;

impl Settings {
    /// The settings as a TOML file, with the origin of each as a comment. Of a uid's contract only
    /// what it names: the rest follows `[quota]`.
    pub(crate) fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        let mut section = String::new();
        for place in Place::engine() {
            let path = place.key();
            let (table, key) = path.rsplit_once('.').unwrap_or(("", &path));
            if table != section {
                lines.push((format!("\n[{table}]"), None));
                section = table.to_string();
            }
            let line = self.line(place, key).unwrap_or_else(|| format!("# {key} is not set"));
            lines.push((line, Some(self.origin(place))));
        }
        for uid in self.config.uid.keys() {
            lines.push((format!("\n[uid.{uid}]"), None));
            for place in Place::of_uid(*uid) {
                let path = place.key();
                let key = path.rsplit_once('.').map_or("", |(_, key)| key);
                let line = self.line(place, key);
                lines.extend(line.map(|line| (line, Some(self.origin(place)))));
            }
        }
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        let mut out = String::new();
        for (line, origin) in lines {
            match origin {
                Some(origin) => out += &format!("{line:width$}  # {origin}\n"),
                None => out += &format!("{line}\n"),
            }
        }
        out
    }

    /// A setting as a line of a file, if it has a value.
    fn line(&self, place: Place, key: &str) -> Option<String> {
        match place.read(&self.config) {
            Shown::Unset => None,
            Shown::Number(number) => Some(format!("{key} = {number}")),
            Shown::Switch(on) => Some(format!("{key} = {on}")),
            Shown::Text(text) => Some(format!("{key} = {}", toml::Value::String(text))),
        }
    }

    /// The settings as one object: for each key its value and its origin.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let of_uids = self.config.uid.keys().flat_map(|uid| Place::of_uid(*uid));
        let of_uids = of_uids.filter(|place| self.line(*place, "").is_some());
        let rows = Place::engine().chain(of_uids).map(|place| {
            let value = match place.read(&self.config) {
                Shown::Unset => serde_json::Value::Null,
                Shown::Number(number) => number.into(),
                Shown::Switch(on) => on.into(),
                Shown::Text(text) => text.into(),
            };
            let row = serde_json::json!({ "value": value, "from": self.origin(place).to_string() });
            (place.key(), row)
        });
        serde_json::Value::Object(rows.collect())
    }
}
