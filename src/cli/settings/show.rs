//! The settings in force, printed: as a file that gives the same again, or as one object.

use super::Settings;
use super::form::Shown;
use super::table::TABLE;

impl Settings {
    /// The settings as a TOML file, with the origin of each as a comment.
    pub(crate) fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        let mut section = "";
        for (setting, origin) in TABLE.iter().zip(&self.origins) {
            let (table, key) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if table != section {
                lines.push((format!("\n[{table}]"), None));
                section = table;
            }
            let line = match (setting.read)(&self.config) {
                Shown::Unset => format!("# {key} is not set"),
                Shown::Number(number) => format!("{key} = {number}"),
                Shown::Text(text) => format!("{key} = {}", toml::Value::String(text)),
            };
            lines.push((line, Some(origin)));
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

    /// The settings as one object: for each key its value and its origin.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let rows = TABLE.iter().zip(&self.origins).map(|(setting, origin)| {
            let value = match (setting.read)(&self.config) {
                Shown::Unset => serde_json::Value::Null,
                Shown::Number(number) => number.into(),
                Shown::Text(text) => text.into(),
            };
            let row = serde_json::json!({ "value": value, "from": origin.to_string() });
            (setting.key.to_string(), row)
        });
        serde_json::Value::Object(rows.collect())
    }
}
