// Everything that the page says
export const WORDS = {
  en: {
    title: "Photo search", ask: "A dog on a beach … or drop a photo", skip: "To the photos", filters: "Filters",
    folder: "Folder", all: "all", since: "From", until: "To", scores: "Scores", fold: "Fold near-duplicates",
    choose: "Search by a photo", drop: "Drop a photo to find ones like it", forget: "Without this photo",
    asked: "the photo that is asked with", copy: "Copy path", copied: "Copied", alike: "More like this", close: "Close",
    similar: "Similar photos", previous: "Previous photo", next: "Next photo", results: "Photos", good: "Good matches",
    rest: "The rest", teachers: "The teacher's order", students: "The student's order", nothing: "No photos yet.", end: "That was all.", lost: "The server does not answer.",
    keys: "Keys: / to ask, arrows to move, Enter to open, M for more like this, S for scores, Esc to close.",
    found: (n, ms) => `${n.toLocaleString("en")} photos by words, in ${ms} ms`, latest: (n) => `${n.toLocaleString("en")} photos, the latest first`,
    indexing: (done, total, rate, left) => `Indexing ${done.toLocaleString("en")} of ${total.toLocaleString("en")}, ${rate} a second${left ? `, ${left} left` : ""}`,
    open: (path, score) => `${path}${score}`, same: (n) => `and ${n} nearly the same`, other: "中文", code: "zh",
    about: (n, unread) => `${n.toLocaleString("en")} photos${unread ? `, ${unread} files that can't be read` : ""}. Nothing leaves this machine.`,
  },
  zh: {
    title: "照片搜索", ask: "海滩上的狗……或者拖入一张照片", skip: "到照片", filters: "筛选",
    folder: "文件夹", all: "全部", since: "从", until: "到", scores: "分数", fold: "合并几乎相同的",
    choose: "用照片搜索", drop: "放下照片，找相似的", forget: "去掉这张照片",
    asked: "用来搜索的照片", copy: "复制路径", copied: "已复制", alike: "更多相似的", close: "关闭",
    similar: "相似的照片", previous: "上一张", next: "下一张", results: "照片", good: "符合的",
    rest: "其余的", teachers: "教师的排序", students: "学生的排序", nothing: "还没有照片。", end: "没有更多了。", lost: "服务器没有回答。",
    keys: "按键：/ 提问，方向键移动，Enter 打开，M 更多相似的，S 分数，Esc 关闭。",
    found: (n, ms) => `${n.toLocaleString("zh")} 张照片按词排序，用时 ${ms} 毫秒`, latest: (n) => `${n.toLocaleString("zh")} 张照片，最新的在前`,
    indexing: (done, total, rate, left) => `正在索引 ${done.toLocaleString("zh")} / ${total.toLocaleString("zh")}，每秒 ${rate} 张${left ? `，还需 ${left}` : ""}`,
    open: (path, score) => `${path}${score}`, same: (n) => `还有 ${n} 张几乎相同`, other: "English", code: "en",
    about: (n, unread) => `${n.toLocaleString("zh")} 张照片${unread ? `，${unread} 个文件无法读取` : ""}。一切都留在这台机器上。`,
  },
};
