// What a device of devices.mjs can do with threads, edits and reactions, as Element Web does it with matrix-js-sdk.

import { Direction, EventStatus, RelationType } from "matrix-js-sdk";
import { Thread } from "matrix-js-sdk/lib/models/thread.js";

const related = (relType, id, more = {}) => ({ "m.relates_to": { rel_type: relType, event_id: id, ...more } });

// `until`: of devices.mjs, which has no others to lend.
export function relationVerbs(until) {
    return {
        // Opens the app anew with threads, as a setting of it.
        async withThreads() {
            this.threads = true;
            await this.close();
            await this.open();
            return { threads: Thread.hasServerSideSupport, list: Thread.hasServerSideListSupport };
        },

        async createPlainRoom({ name }) {
            const { room_id: room } = await this.client.createRoom({ name, preset: "public_chat" });
            await this.untilMembership({ room, membership: "join" });
            return room;
        },

        async joinPlain({ room, via }) {
            await this.client.joinRoom(room, via ? { viaServers: [via] } : {});
            await this.untilMembership({ room, membership: "join" });
        },

        // The event as this client has it, in whatever timeline, scrolled back to if need be.
        async eventOf(room, id) {
            return until(`${this.name}: ${id}`, async () => {
                const here = this.client.getRoom(room);
                const event = here?.findEventById(id);
                if (event && !event.isBeingDecrypted()) return event;
                if (here && !event) await this.scrollBack(room).catch(() => {});
                return null;
            });
        },

        // The room's own timeline as somebody sees it who scrolls back to this event, with what relates to it. A thread's root
        // may be known from the thread before.
        async scrollBackTo({ room, id }) {
            const isReached = () => Boolean(this.client.getRoom(room).getUnfilteredTimelineSet().getTimelineForEvent(id));
            await until(`${this.name}: ${id}, scrolled back to`, async () => {
                if (!isReached()) await this.scrollBack(room).catch(() => {});
                return isReached();
            });
        },

        // A thread as its panel is opened, which begins one where there is none.
        async openThread(room, root) {
            const event = await this.eventOf(room, root);
            const here = this.client.getRoom(room);
            const thread = here.getThread(root) ?? here.createThread(root, event, [event], true);
            return until(`${this.name}: the beginning of the thread`, () => thread.initialEventsFetched && thread);
        },

        async replyInThread({ room, root, body }) {
            await this.openThread(room, root);
            return (await this.client.sendMessage(room, root, { msgtype: "m.text", body })).event_id;
        },

        async edit({ room, id, body }) {
            const event = await this.eventOf(room, id);
            const text = { msgtype: "m.text", body };
            const content = { ...text, body: `* ${body}`, "m.new_content": text, ...related("m.replace", id) };
            return (await this.client.sendMessage(room, event.threadRootId ?? null, content)).event_id;
        },

        async react({ room, id, key }) {
            const event = await this.eventOf(room, id);
            const content = related("m.annotation", id, { key });
            return (await this.client.sendEvent(room, event.threadRootId ?? null, "m.reaction", content)).event_id;
        },

        // What the server says to a second reaction of the same kind. The library keeps what failed, as if to be retried.
        async reactAgain({ room, id, key }) {
            try {
                await this.react({ room, id, key });
                return null;
            } catch (error) {
                const here = this.client.getRoom(room);
                const events = here.getLiveTimeline().getEvents();
                for (const event of [...events]) if (event.status === EventStatus.NOT_SENT) this.client.cancelPendingEvent(event);
                return { errcode: error.errcode, status: error.httpStatus };
            }
        },

        async redact({ room, id }) {
            const event = await this.eventOf(room, id);
            await this.client.redactEvent(room, event.threadRootId ?? null, id);
        },

        // The text that an event is shown with, edits applied, once it is this.
        async untilText({ room, id, body }) {
            const event = await this.eventOf(room, id);
            const told = () => ({ body: event.getContent().body, edited: Boolean(event.replacingEvent()) });
            await until(
                () => `${this.name}: ${id} as ${body} (it is ${JSON.stringify(told())})`,
                () => told().body === body,
            );
            return told();
        },

        // Keys and senders of the reactions to an event, by what came with its timeline, once they are these.
        async untilReactions({ room, id, wanted }) {
            const told = () => {
                const here = this.client.getRoom(room);
                const sets = [here.getUnfilteredTimelineSet(), ...here.getThreads().map((thread) => thread.timelineSet)];
                const counted = {};
                for (const set of sets) {
                    const relations = set.relations.getChildEventsForEvent(id, "m.annotation", "m.reaction");
                    for (const [key, events] of relations?.getSortedAnnotationsByKey() ?? []) {
                        counted[key] = [...events].map((event) => event.getSender()).sort();
                    }
                }
                return counted;
            };
            const text = JSON.stringify(wanted);
            await until(
                () => `${this.name}: ${text} at ${id} (it is ${JSON.stringify(told())})`,
                () => JSON.stringify(told()) === text,
            );
        },

        // The room's threads as the panel of them is opened: asked of the server anew.
        async threadList({ room }) {
            const here = this.client.getRoom(room);
            await here.createThreadsTimelineSets();
            await here.fetchRoomThreads();
            const [all, own] = here.threadsTimelineSets;
            // A list has its latest entry last.
            const ids = (set) => set.getLiveTimeline().getEvents().map((event) => event.getId()).toReversed();
            return { all: ids(all), participated: ids(own) };
        },

        // A thread as it is shown, once this is its latest reply and, if it matters, it has so many. (What comes while the
        // library asks for the root is counted twice by it, with any server.)
        async untilThread({ room, root, count = null, latest }) {
            const told = () => {
                const thread = this.client.getRoom(room)?.getThread(root);
                const last = thread?.replyToEvent;
                return { count: thread?.length, latest: last?.getContent().body, participated: thread?.hasCurrentUserParticipated };
            };
            await until(
                () => `${this.name}: the thread of ${root} with ${count}, at last ${latest} (it is ${JSON.stringify(told())})`,
                () => (count === null || told().count === count) && told().latest === latest,
            );
            return told();
        },

        // What is said in a thread, oldest first, as it is scrolled back through.
        async thread({ room, root, count }) {
            const thread = await this.openThread(room, root);
            const said = () => thread.events.filter((event) => event.isRelation(RelationType.Thread));
            while (said().length < count && (await this.client.paginateEventTimeline(thread.liveTimeline, { backwards: true, limit: 3 })));
            return said().map((event) => event.getContent().body);
        },

        // All that relates to an event, page by page.
        async relations({ room, id, relType = null, eventType = null, limit, forwards = false, recurse = false }) {
            const [found, dir] = [[], forwards ? Direction.Forward : Direction.Backward];
            let from;
            let pages = 0;
            do {
                const page = await this.client.relations(room, id, relType, eventType, { dir, limit, from, recurse });
                found.push(...page.events.map((event) => event.getId()));
                from = page.nextBatch;
                pages += 1;
            } while (from);
            return { found, pages };
        },
    };
}
