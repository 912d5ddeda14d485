//! The `verbring` command.

fn main() {
    for (name, value) in verbring::abi::table() {
        println!("{name} {value}");
    }
}
