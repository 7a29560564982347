//! What writing costs in rows and bytes: figures that do not depend on the machine, so they can be asserted.

use std::collections::BTreeMap;

use crate::common::wide_room::WideRoom;

fn grown(before: &BTreeMap<String, i64>, after: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let more = |(table, rows): (&String, &i64)| (table.clone(), rows - before.get(table).unwrap_or(&0));
    after.iter().map(more).filter(|(_, more)| *more != 0).collect()
}

#[test]
fn a_join_of_a_room_with_five_thousand_servers_owes_them_the_device_list_without_a_row_for_any() {
    let room = WideRoom::new(5000).unwrap();
    assert_eq!((room.rows().unwrap()["owed_edus"], room.owed_servers().unwrap()), (0, 5001));
}

#[test]
fn a_message_in_a_room_with_five_thousand_servers_is_one_row_and_owed_to_all_of_them() {
    let mut room = WideRoom::new(5000).unwrap();
    assert_eq!(room.servers().unwrap(), 5002);
    room.say("the first").unwrap();
    let before = room.rows().unwrap();
    for number in 0..10 {
        room.say(&format!("message {number}")).unwrap();
    }
    assert_eq!(grown(&before, &room.rows().unwrap()), BTreeMap::from([("events".to_owned(), 10)]));
}
