//! Chinese prose without end, without digits and Latin letters, to hide things in.
//!
//! As [`prose`](super::prose::prose()), from patterns and word lists by a seeded generator.

use super::prose::Rng;

/// What a slot of a pattern is filled from.
fn words(slot: &str) -> &'static [&'static str] {
    match slot {
        "who" => &[
            "老园丁",
            "面包师",
            "年轻的画家",
            "村里的先生",
            "木匠",
            "她的哥哥",
            "卖布的商人",
            "磨坊主",
            "祖母",
            "钟表匠",
            "渔夫",
            "邮差",
            "放羊的孩子",
            "客栈的主人",
        ],
        "where" => &[
            "在河边",
            "在集市上",
            "在庙后面",
            "在树林旁",
            "在北边的路上",
            "在码头附近",
            "在果园里",
            "在石桥下",
            "在山脚下",
            "在小厨房里",
            "在磨坊旁边",
        ],
        "thing" => &[
            "一把木椅",
            "一篮苹果",
            "一把铜壶",
            "一张旧地图",
            "一捆信",
            "一件棉衣",
            "一只小船",
            "一盏破灯笼",
            "一罐蜂蜜",
            "一双布鞋",
            "一箱蜡烛",
            "一袋面粉",
        ],
        "place" => {
            &["村子", "山谷", "老码头", "海边", "小镇", "草场", "岛上", "农庄", "山口", "车站"]
        }
        "deed" => &[
            "修好了",
            "搬走了",
            "卖掉了",
            "忘记了",
            "看中了",
            "借走了",
            "擦干净了",
            "找到了",
            "送走了",
        ],
        "quality" => &["很安静", "很热闹", "很冷", "很明亮", "很潮湿", "很冷清", "有风"],
        "time" => &[
            "清早",
            "吃饭之前",
            "深秋的时候",
            "雨停以后",
            "收割的日子里",
            "冬天过半的时候",
            "傍晚",
            "天亮以前",
            "钟声响起时",
        ],
        "weather" => {
            &["风从海上吹来", "下着小雨", "田野上起了雾", "太阳很低", "屋顶上盖着雪", "云走得很快"]
        }
        "noise" => {
            &["狗叫了一声", "马车走过", "门关上了", "孩子们在笑", "有人在拉琴", "鹅叫个不停"]
        }
        "view" => &[
            "屋顶该修了",
            "路很快会干",
            "不应该一个人赶路",
            "今年的收成会好",
            "河水从没有这么高",
            "新桥太窄",
            "马已经累了",
            "羊毛卖得太便宜",
        ],
        _ => &[],
    }
}

/// Sentences with slots in braces.
const PATTERNS: [&str; 14] = [
    "{who}{where}{deed}{thing}。",
    "{time}，{who}走到{place}，{deed}{thing}。",
    "{weather}，{place}{quality}。",
    "{who}觉得{view}。",
    "{place}没有人知道{who}为什么{deed}{thing}。",
    "{where}，{noise}，可是{who}没有抬头。",
    "{who}对{who}说，{view}。",
    "{time}，去{place}的路上{quality}。",
    "{place}的人大多认为{view}。",
    "{weather}，{who}留在家里，{deed}{thing}。",
    "难道{who}真的以为{view}？",
    "{who}{time}从{place}带回来{thing}。",
    "晚饭以后，{who}和{who}谈起了{place}。",
    "{who}从来没有去过{place}，虽然并不远。",
];

/// At least `n` characters; the same for the same seed, and longer texts begin as shorter
/// ones do.
pub fn prose_zh(seed: u64, n: usize) -> String {
    let mut rng = Rng::new(seed);
    let mut text = String::new();
    let (mut count, mut last) = (0, PATTERNS.len());
    while count < n {
        let pattern = rng.below(PATTERNS.len());
        if pattern == last {
            continue;
        }
        last = pattern;
        let mut rest = PATTERNS[pattern];
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) = after.split_once('}').unwrap_or((after, ""));
            let choices = words(slot);
            let word = choices.get(rng.below(choices.len())).copied().unwrap_or(slot);
            count += before.chars().count() + word.chars().count();
            text += before;
            text += word;
            rest = after;
        }
        count += rest.chars().count();
        text += rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_chinese() {
        let text = prose_zh(1, 2000);
        assert!(text.chars().count() >= 2000);
        assert!(
            text.chars().all(|c| "，。？".contains(c) || ('\u{4e00}'..='\u{9fff}').contains(&c))
        );
        assert!(prose_zh(1, 4000).starts_with(&text) && prose_zh(2, 2000) != text);
        for pattern in PATTERNS {
            for slot in pattern.split('{').skip(1) {
                let slot = slot.split_once('}').expect("a closing brace").0;
                assert!(words(slot).len() >= 6, "{slot}");
            }
        }
    }
}
