// Search when the site is read from disk: browsers start no worker from a file:// address. There the theme's search runs in
// a hidden frame, which takes and gives messages as a worker does. (The name tells the theme's `offline` plugin, which writes
// the search index as a script, that it need not load such a replacement from the net.)
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.document.open() // or Firefox would put another, empty document in its place
      inside.document.close()
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.document.createElement("script")
      this.loaded = new Promise(resolve => script.addEventListener("load", resolve))
      script.src = new URL(url, location)
      inside.document.head.append(script)
    }

    postMessage(data) { // kept until the script listens
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
